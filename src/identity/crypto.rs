//! The one crypto provider, with the cipher that is fast on this processor first.
//!
//! ring's own order puts AES first everywhere, which on a Pi 3, 4 or Zero (no AES instructions) costs a third of the
//! speed of ChaCha20. AES-128-GCM stays in the list: QUIC's Initial packets need it.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::{CipherSuite, SupportedCipherSuite};

/// Whether the processor has AES instructions that ring uses. 32-bit ARM counts as without.
pub fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

/// ring as rustls's provider, ciphers ordered for this processor. Made once.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ordered(has_aes()))))
}

fn ordered(aes: bool) -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| rank(suite, aes));
    provider
}

/// Lower comes first. With AES in hardware AES-128 before AES-256: as safe for this use, and faster.
fn rank(suite: &SupportedCipherSuite, aes: bool) -> u8 {
    let name = suite.suite();
    let chacha = matches!(
        name,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    );
    let aes128 = matches!(
        name,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    );
    let tls13 = suite.tls13().is_some();
    let kind = match (chacha, aes128) {
        (true, _) if aes => 2,
        (true, _) => 0,
        (_, true) if aes => 0,
        (_, true) => 1,
        _ if aes => 1,
        _ => 2,
    };
    if tls13 { kind } else { kind + 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chacha20_comes_first_exactly_where_the_processor_has_no_aes() {
        let first = |aes| ordered(aes).cipher_suites[0].suite();
        assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_eq!(first(true), CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn quics_initial_cipher_is_always_offered() {
        for aes in [true, false] {
            let suites = ordered(aes).cipher_suites;
            assert!(
                suites
                    .iter()
                    .any(|s| s.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
            );
            assert_eq!(suites.len(), ring::default_provider().cipher_suites.len());
        }
    }
}
