//! Real servers that take uploads, with what they stored open to the test, and faults of the way and the server thrown in
//! where a test wants them.
//!
//! On loopback:
//!
//! ```ignore
//! let authority = Authority::new()?;                       // its PEM is what the client trusts
//! let listener = TcpListener::bind(("127.0.0.1", 0))?;
//! let tus = TusServer::start(listener, &authority.issue(&["upload.test"])?, Options::default());
//! // tus+https://upload.test:PORT/files/     afterwards: tus.finished() -> name and content of each whole file
//! ```
//!
//! In a lab, with an address, a name and a certificate of its own:
//!
//! ```ignore
//! let address = lab.host("dav.lab");
//! let issued = lab.authority().issue(&["dav.lab"]).unwrap();
//! let dav = NginxDav::start(lab.command_outside("nginx"), (address, 443).into(), &issued);
//! // https://dav.lab/...                     afterwards: dav.files() is the directory with what was stored
//!
//! let address = lab.host("tus.lab");
//! let listener = lab.outside(move || TcpListener::bind((address, 443)));
//! let issued = lab.authority().issue(&["tus.lab"]).unwrap();
//! let tus = TusServer::start(listener, &issued, Options::default());
//! // tus+https://tus.lab/files/
//! ```

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a server that cannot start fails its test"
)]

mod memory;
mod nginx;
mod tus;
mod web;

#[allow(unused_imports, reason = "each test file is a crate and uses a part of it")]
pub use memory::MemoryDav;
pub use nginx::NginxDav;
pub use tus::{Options, TusServer};
#[allow(unused_imports, reason = "each test file is a crate and uses a part of it")]
pub use web::{Fault, Seen};

/// A certificate and its key, as PEM.
pub type Issued = (String, String);
