"""The shard store: schema, writer, reader, samplers, verification. The format is FORMAT.md."""
