//! TLS towards origins: which authorities are trusted, and which cipher comes first.
//!
//! Invariant: a certificate is always verified; there is no switch that turns it off (SEC-C10).

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;

use crate::identity::provider;

/// TLS cannot be set up at all.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct TlsError(pub String);

/// The configuration for all connections to origins, and a note where its trusted authorities come from.
///
/// The system's store comes first, so that a site's own authority works (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured);
/// where it is empty, as on a bare router, Mozilla's list built into the program serves.
///
/// # Errors
/// [`TlsError`] where the cryptography cannot be set up.
pub fn client_config() -> Result<(Arc<ClientConfig>, String), TlsError> {
    let (roots, source) = roots();
    let config = config_with(roots)?;
    Ok((Arc::new(config), source))
}

/// The configuration that trusts exactly `roots`.
///
/// # Errors
/// As [`client_config`].
pub fn config_with(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // HTTP/1.1 only: with HTTP/2 all ranges of a lane would share one TCP connection (HTTP-1).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots() -> (RootCertStore, String) {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a certificate store cannot be read");
    }
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return (
            roots,
            format!("{added} authorities of the system's certificate store"),
        );
    }
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let source = format!(
        "{} authorities built in (the system has no certificate store)",
        roots.len()
    );
    (roots, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_01_the_only_protocol_offered_is_http_1_1() {
        let config = config_with(RootCertStore::empty()).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn there_is_always_an_authority_to_trust() {
        let (roots, source) = roots();
        assert!(!roots.is_empty(), "{source}");
    }
}
