//! What `tributary demo` and the lab are made of: an HTTPS origin that needs no disk and no certificate of the world's.

mod content;
pub mod origin;
