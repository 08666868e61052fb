//! moto's server: another S3 than ours, written in another language. In a lab give [`Moto::start`] `lab.command_outside(..)`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Says its port, and serves until its standard input ends.
const SERVE: &str = "
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
";
/// moto believes every signature, but shows what is private only to who has one.
const SOMEBODY: &str =
    "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
const PACKAGE: &str = "moto[server]==5.2.5";

/// A running server; ends when dropped.
pub struct Moto {
    child: Child,
    pub address: SocketAddr,
}

/// The Python of an environment below `target` that has moto, which is made where it is missing.
pub fn python() -> PathBuf {
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto");
    let python = environment.join("bin/python");
    let has_moto = |python: &Path| {
        let asked = Command::new(python)
            .args(["-c", "import moto.server"])
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    };
    if !has_moto(&python) {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment)
            .status()
            .unwrap();
        assert!(
            made.success(),
            "python3 makes no environment; is its package `venv` installed?"
        );
        let installed = Command::new(&python)
            .args(["-m", "pip", "install", "-q", PACKAGE])
            .status()
            .unwrap();
        assert!(installed.success(), "{PACKAGE} could not be installed");
    }
    python
}

impl Moto {
    /// Starts it with this Python (a [`Command`] of [`python`]) at an address; port 0: any.
    pub fn start(mut python: Command, host: IpAddr, port: u16) -> Self {
        let mut child = python
            .args(["-c", SERVE, &host.to_string(), &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().parse().expect("moto did not start");
        Self {
            child,
            address: SocketAddr::new(host, port),
        }
    }

    /// One request without a body, from this process's network: status and body.
    pub fn ask(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: {SOMEBODY}\r\nContent-Length: 0\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("no answer");
        let status = String::from_utf8_lossy(&answer[..end])
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok());
        (status.unwrap_or_default(), answer[end + 4..].to_vec())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
