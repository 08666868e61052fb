//! Tests of what is kept and told.
