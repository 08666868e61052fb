//! nginx with its DAV module, as a household's server may have it.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Issued;

/// From its start until it listens.
const STARTS: Duration = Duration::from_secs(20);

/// The server; it ends when it is dropped, and its files with it.
pub struct NginxDav {
    child: Child,
    directory: TempDir,
}

impl NginxDav {
    /// Starts `command` (nginx, in whatever namespace) to serve all of `https://NAME/` with PUT, DELETE and MKCOL.
    pub fn start(command: Command, address: SocketAddr, issued: &Issued) -> Self {
        Self::with(command, address, issued, "")
    }

    /// With further directives for its server: `limit_except`, `client_max_body_size`, `auth_basic`.
    pub fn with(mut command: Command, address: SocketAddr, issued: &Issued, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        fs::create_dir(at.join("files")).unwrap();
        fs::write(at.join("certificate.pem"), &issued.0).unwrap();
        fs::write(at.join("key.pem"), &issued.1).unwrap();
        fs::write(at.join("nginx.conf"), configuration(at, address, more)).unwrap();
        let log = fs::File::create(at.join("error.log")).unwrap();
        let child = command
            .arg("-p")
            .arg(at)
            .arg("-c")
            .arg(at.join("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nginx is not installed: apt install nginx");
        let mut server = Self { child, directory };
        server.wait();
        server
    }

    /// It writes its pid once it listens.
    fn wait(&mut self) {
        let began = Instant::now();
        while fs::read(self.directory.path().join("pid")).map_or(true, |pid| pid.is_empty()) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < STARTS,
                "nginx does not start: {ended:?}: {}",
                self.log("error.log")
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where what was stored lies.
    pub fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// What it was asked, in order: `PUT /a 201`.
    pub fn requests(&self) -> Vec<String> {
        self.log("access.log").lines().map(str::to_owned).collect()
    }

    fn log(&self, name: &str) -> String {
        let mut text = String::new();
        let _ =
            fs::File::open(self.directory.path().join(name)).map(|mut file| file.read_to_string(&mut text));
        text
    }
}

impl Drop for NginxDav {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(at: &Path, address: SocketAddr, more: &str) -> String {
    let at = at.display();
    format!(
        "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\n\
         log_format short '$request_method $request_uri $status';\naccess_log {at}/access.log short;\n\
         client_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\nfastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi;\nscgi_temp_path {at}/scgi;\ndefault_type application/octet-stream;\n\
         server {{\nlisten {address} ssl;\nssl_certificate {at}/certificate.pem;\nssl_certificate_key {at}/key.pem;\n\
         client_max_body_size 0;\nroot {at}/files;\nlocation / {{\ndav_methods PUT DELETE MKCOL;\n\
         dav_access user:rw group:r all:r;\n{more}\n}}\n}}\n}}\n"
    )
}
