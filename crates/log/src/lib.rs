//! The CRI container log format: writer, rotation, recovery.
