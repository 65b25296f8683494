"""Moving the packs of a store to another place while the store is in use."""
