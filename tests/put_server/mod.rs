//! A server that takes what is put there, in the lab's internet: plain HTTP/1.1, one thread for each connection.
//!
//! `PUT /hold/...` is not answered, and no more of it is read than the head, until the server is dropped; `PUT /refused/...` is
//! answered by 403. It has no WebDAV, so a directory's files are asked for one by one.

#![allow(dead_code, reason = "each test file is a crate and uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a server that cannot be had fails its test")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::lab::Lab;

const PORT: u16 = 80;
/// How soon a thread sees that the server is dropped.
const GLANCE: Duration = Duration::from_millis(20);

/// A running server; stops when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    there: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Request lines, in order.
    asked: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Server {
    pub(crate) fn start(lab: &Lab, name: &str) -> Self {
        let address = SocketAddr::new(lab.host(name), PORT);
        let listener = lab.outside(|| TcpListener::bind(address));
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while !shared.over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let state = Arc::clone(&shared);
                        connections.push(thread::spawn(move || drop(state.serve(&stream))));
                    }
                    Err(_) => thread::sleep(GLANCE),
                }
            }
            connections.into_iter().for_each(|c| c.join().unwrap());
        });
        Self {
            name: name.to_owned(),
            state,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.name)
    }

    /// What lies at that path.
    pub(crate) fn at(&self, path: &str) -> Option<Vec<u8>> {
        self.state.there.lock().unwrap().get(path).cloned()
    }

    /// All paths that hold something.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.there.lock().unwrap().keys().cloned().collect()
    }

    /// Whether somebody has begun such a request.
    pub(crate) fn was_asked(&self, request: &str) -> bool {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().any(|line| line.starts_with(request))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(GLANCE))?;
        let mut reader = BufReader::new(Patient(stream, self));
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head)? == 0 {
                    return Ok(());
                }
            }
            let request = head.lines().next().unwrap_or_default().to_owned();
            let (method, path) = request.split_once(' ').unwrap_or_default();
            let path = path.split([' ', '?']).next().unwrap_or_default().to_owned();
            let length = header(&head, "content-length").and_then(|l| l.parse().ok());
            self.asked.lock().unwrap().push(request.clone());
            if method == "PUT" && path.starts_with("/hold/") {
                while !self.over.load(Ordering::Relaxed) {
                    thread::sleep(GLANCE);
                }
                return stream.shutdown(Shutdown::Both);
            }
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body)?;
            let (status, length) = self.answer(method, path, body);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
            (&*stream).write_all(head.as_bytes())?;
        }
    }

    fn answer(&self, method: &str, path: String, body: Vec<u8>) -> (&'static str, usize) {
        let mut there = self.there.lock().unwrap();
        match method {
            "PUT" if path.starts_with("/refused/") => ("403 Forbidden", 0),
            "PUT" => match there.insert(path, body) {
                Some(_) => ("200 OK", 0),
                None => ("201 Created", 0),
            },
            "HEAD" => match there.get(&path) {
                Some(body) => ("200 OK", body.len()),
                None => ("404 Not Found", 0),
            },
            _ => ("405 Method Not Allowed", 0),
        }
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Waits for bytes until the server is dropped.
struct Patient<'a>(&'a TcpStream, &'a State);

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut stream = self.0;
            match stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !self.1.over.load(Ordering::Relaxed) => {}
                read => return read,
            }
        }
    }
}
