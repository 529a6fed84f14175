//! Tar streams to EROFS images.
