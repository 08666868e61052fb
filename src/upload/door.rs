//! What `fuzzing` may call of the uploads' own: how answers of servers are read.

use hyper::HeaderMap;
use url::Url;

use super::dav;
use super::tus;

/// The names that a listing (`PROPFIND`) of `directory` gives for what is directly in it, each with the address that a file
/// of this name would go to.
pub fn listed(directory: &Url, body: &[u8]) -> Vec<(String, Url)> {
    dav::listed(directory, body)
}

/// What a tus server's headers tell: whether it can be used, how much it has, how long it will be.
pub fn tus_headers(headers: &HeaderMap) -> (bool, Option<u64>, Option<u64>) {
    tus::read_headers(headers)
}

/// The ranges and names in a journal's text.
pub fn journal(text: &str) -> Vec<(u64, u64, String)> {
    tus::read_journal(text)
}
