//! Durable, schema-versioned records.
