//! TLS 1.3 with raw public keys (RFC 7250) on both sides: proves that the other end holds the key it names.
//!
//! Who it is, is read from the finished handshake ([`peer_of_spki`]), never from a name or a discovery record.
//! Invariant: only an Ed25519 key that signed this very handshake passes; nothing is resumed and no early data is
//! taken, so that no ticket can mix two peers.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version};

use crate::types::PeerId;

use super::{DeviceKey, crypto};

/// The protocol and its version: two versions that cannot talk to each other do not get as far as a message.
pub const ALPN: &[u8] = b"tributary/1";

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) up to the 32 bytes of the key itself.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// TLS settings for dialling a peer.
///
/// # Errors
/// Where rustls refuses the key or the provider; not for a key of ours.
pub fn tls_client(key: &DeviceKey) -> Result<rustls::ClientConfig, Error> {
    let provider = crypto::provider();
    let verifier = Arc::new(RawKeyVerifier::new(&provider));
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(key, &provider)?);
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// TLS settings for being dialled by a peer.
///
/// # Errors
/// As [`tls_client`].
pub fn tls_server(key: &DeviceKey) -> Result<rustls::ServerConfig, Error> {
    let provider = crypto::provider();
    let verifier = Arc::new(RawKeyVerifier::new(&provider));
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(key, &provider)?);
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // The weaker device decides: a server without AES takes its own order, one with AES the client's.
    config.ignore_client_order = !crypto::has_aes();
    Ok(config)
}

/// The peer id in a SubjectPublicKeyInfo; `None` where it is not exactly one Ed25519 key.
pub fn peer_of_spki(spki: &[u8]) -> Option<PeerId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PeerId(key.try_into().ok()?))
}

/// What `fuzzing` may call: the verifier as TLS asks it.
#[cfg(any(fuzzing, test))]
pub(crate) mod door {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::{
        CertificateDer, ClientCertVerifier, DeviceKey, RawKeyVerifier, ServerCertVerifier, ServerName,
        UnixTime, crypto,
    };

    /// Whether the other end may come with this certificate and these others, where it was dialled and where it dials.
    pub fn accepts(end_entity: &[u8], others: &[&[u8]]) -> (bool, bool) {
        let verifier = RawKeyVerifier::new(&crypto::provider());
        let end_entity = CertificateDer::from(end_entity);
        let others: Vec<_> = others.iter().map(|other| CertificateDer::from(*other)).collect();
        let now = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        let dialled = verifier.verify_server_cert(&end_entity, &others, &name, &[], now);
        let dials = verifier.verify_client_cert(&end_entity, &others, now);
        (dialled.is_ok(), dials.is_ok())
    }

    /// The device whose secret key is 32 times `n` and one more: the same in each run.
    pub fn device(n: u8) -> DeviceKey {
        let seed = [n + 1; 32];
        let public =
            Ed25519KeyPair::from_seed_unchecked(&seed).map(|pair| pair.public_key().as_ref().to_vec());
        // RFC 8410 7, with the public key: version, algorithm, the secret in its string, the public one.
        let head = [0x30, 0x51, 2, 1, 1, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32];
        let pkcs8 = [&head[..], &seed, &[0x81, 33, 0], &public.unwrap_or_default()].concat();
        match DeviceKey::from_pkcs8(pkcs8) {
            Some(key) => key,
            None => unreachable!("ring reads what it writes"),
        }
    }
}

fn certified(key: &DeviceKey, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8.clone()));
    let signing = provider.key_provider.load_private_key(pkcs8)?;
    let spki = [&SPKI_PREFIX[..], &key.id().0[..]].concat();
    Ok(Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(spki)],
        signing,
    )))
}

/// Accepts any Ed25519 key that really signed the handshake. What the key may do is decided later, by its tier.
#[derive(Debug)]
struct RawKeyVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl RawKeyVerifier {
    fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }

    fn check_key(end_entity: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if others.is_empty() && peer_of_spki(end_entity).is_some() {
            return Ok(());
        }
        Err(CertificateError::BadEncoding.into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(CertificateError::BadSignature.into());
        }
        let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

impl ServerCertVerifier for RawKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check_key(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("links are TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check_key(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("links are TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    #[test]
    fn two_devices_learn_each_others_ids_from_the_handshake() {
        let (a, b) = (DeviceKey::ephemeral().unwrap(), DeviceKey::ephemeral().unwrap());
        let (client, server) = handshake(tls_client(&a).unwrap(), tls_server(&b).unwrap()).unwrap();
        assert_eq!(
            peer_of_spki(&client.peer_certificates().unwrap()[0]),
            Some(b.id())
        );
        assert_eq!(
            peer_of_spki(&server.peer_certificates().unwrap()[0]),
            Some(a.id())
        );
        assert_eq!(client.alpn_protocol(), Some(ALPN));
    }

    #[test]
    fn sec_a3_another_devices_public_key_without_its_secret_one_fails_the_handshake() {
        let (mine, stolen, server) = three();
        let mut config = tls_client(&mine).unwrap();
        let forged = forged(&mine, stolen.id());
        config.client_auth_cert_resolver =
            Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(forged));
        assert!(handshake(config, tls_server(&server).unwrap()).is_err());

        let mut config = tls_server(&server).unwrap();
        let forged = self::forged(&server, stolen.id());
        config.cert_resolver = Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(forged));
        assert!(handshake(tls_client(&mine).unwrap(), config).is_err());
    }

    #[test]
    fn sec_a4_another_protocol_or_a_client_without_a_key_gets_nothing() {
        let (a, _, b) = three();
        let mut other_alpn = tls_client(&a).unwrap();
        other_alpn.alpn_protocols = vec![b"tributary/2".to_vec()];
        assert!(handshake(other_alpn, tls_server(&b).unwrap()).is_err());

        let verifier = Arc::new(RawKeyVerifier::new(&crypto::provider()));
        let mut keyless = rustls::ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        keyless.alpn_protocols = vec![ALPN.to_vec()];
        assert!(handshake(keyless, tls_server(&b).unwrap()).is_err());
    }

    #[test]
    fn sec_a4_only_one_bare_ed25519_key_is_an_identity() {
        let good = [&SPKI_PREFIX[..], &[7; 32]].concat();
        assert_eq!(peer_of_spki(&good), Some(PeerId([7; 32])));
        for bad in [&good[..43], &[&good[..], &[0]].concat(), &[0; 44][..], &[]] {
            assert_eq!(peer_of_spki(bad), None);
        }
        let chain = [CertificateDer::from(good.clone())];
        assert!(RawKeyVerifier::check_key(&CertificateDer::from(good), &chain).is_err());
    }

    #[test]
    fn sec_a4_an_older_tls_is_refused_by_both_ends() {
        let (a, _, b) = three();
        let verifier = Arc::new(RawKeyVerifier::new(&crypto::provider()));
        let mut old = rustls::ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[&version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        old.alpn_protocols = vec![ALPN.to_vec()];
        assert!(handshake(old, tls_server(&b).unwrap()).is_err());

        let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(
            certified(&b, &crypto::provider()).unwrap(),
        );
        let mut old = ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[&version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        old.alpn_protocols = vec![ALPN.to_vec()];
        assert!(handshake(tls_client(&a).unwrap(), old).is_err());
    }

    #[test]
    fn sec_a4_no_ticket_is_given_and_no_early_data_taken_so_each_link_proves_its_key_anew() {
        let (a, _, b) = three();
        let mut asks = tls_client(&a).unwrap();
        asks.resumption = rustls::client::Resumption::in_memory_sessions(8);
        asks.enable_early_data = true;
        let server = Arc::new(tls_server(&b).unwrap());
        for _ in 0..2 {
            let (client, server) = handshake(asks.clone(), ServerConfig::clone(&server)).unwrap();
            assert_eq!(client.tls13_tickets_received(), 0);
            assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert!(!client.is_early_data_accepted());
        }
        assert_eq!(server.max_early_data_size, 0);
    }

    #[test]
    fn sec_a4_many_keys_large_ones_and_certificates_are_no_identity() {
        let (a, _, b) = three();
        let signing = certified(&a, &crypto::provider()).unwrap().key.clone();
        let own = CertificateDer::from([&SPKI_PREFIX[..], &a.id().0[..]].concat());
        let x509 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x509 = rcgen::CertificateParams::new(vec!["x509.invalid".into()])
            .unwrap()
            .self_signed(&x509)
            .unwrap();
        let large = CertificateDer::from([own.as_ref(), &[0; 60_000][..]].concat());
        for chain in [
            vec![own.clone(); 50],
            vec![large],
            vec![x509.der().clone()],
            vec![],
        ] {
            let shown = Arc::new(CertifiedKey::new(chain, signing.clone()));
            let mut client = tls_client(&a).unwrap();
            client.client_auth_cert_resolver = Arc::new(
                rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&shown)),
            );
            assert!(handshake(client, tls_server(&b).unwrap()).is_err());
            let mut server = tls_server(&b).unwrap();
            server.cert_resolver = Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(shown));
            assert!(handshake(tls_client(&a).unwrap(), server).is_err());
        }
    }

    fn three() -> (DeviceKey, DeviceKey, DeviceKey) {
        let key = || DeviceKey::ephemeral().unwrap();
        (key(), key(), key())
    }

    /// A key that claims to be `id` and signs with `key`.
    fn forged(key: &DeviceKey, id: PeerId) -> Arc<CertifiedKey> {
        let signing = certified(key, &crypto::provider()).unwrap().key.clone();
        let spki = [&SPKI_PREFIX[..], &id.0[..]].concat();
        Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing))
    }

    fn handshake(
        client: rustls::ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), io::Error> {
        let name = ServerName::try_from("peer.invalid").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).map_err(io::Error::other)?;
        let mut server = ServerConnection::new(Arc::new(server)).map_err(io::Error::other)?;
        for _ in 0..8 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            // A long flight is taken in pieces.
            let mut wire = &wire[..];
            while !wire.is_empty() {
                server.read_tls(&mut wire)?;
                server.process_new_packets().map_err(io::Error::other)?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire)?;
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                client.read_tls(&mut wire)?;
                client.process_new_packets().map_err(io::Error::other)?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }
}
