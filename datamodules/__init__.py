"""The data half: one file per paper over HDF5 shards."""
