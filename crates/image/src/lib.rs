//! Registry client, content store and layer images.
