//! Downloads against an origin that lies. Each test bears the number of its row in the table of HTTP hazards.

#[path = "../evil_origin/mod.rs"]
mod evil_origin;

mod happy;
