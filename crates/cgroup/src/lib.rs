//! Control groups v1, hybrid and v2: create, limit, count, kill.
