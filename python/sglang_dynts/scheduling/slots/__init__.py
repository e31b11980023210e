"""The slots that requests hold: in one KV pool of all layers, or in two."""
