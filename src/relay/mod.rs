//! temporary
pub mod cidr;
pub mod egress;
pub mod name;
mod special;
