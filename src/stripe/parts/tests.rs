//! Sentences about single decisions; whole uploads are in `tests/stripe_parts_simulation.rs`.
