"""The decode side of disaggregation, where prompts come with their K and V from another server."""
