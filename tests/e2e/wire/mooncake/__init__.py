"""In the place of Mooncake's package, which servers of one machine without a GPU do without."""
