//! Clocks that a test may move, for one program: the kernel has one calendar for all, and it is not the test's.
//!
//! A library laid under the program (`LD_PRELOAD`) adds offsets to what the C library says, from a file that it shares
//! with the test. What the kernel measures itself (a timeout of `epoll`) goes on as ever, as it does in a real jump.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::{figure, installed};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[3];
static volatile int64_t *nanos = none;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAB_CLOCKS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *seen = mmap(0, 24, PROT_READ, MAP_SHARED, file, 0);
    if (seen != MAP_FAILED) nanos = seen;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, time);
    int clock = id == CLOCK_REALTIME ? 0 : id == CLOCK_MONOTONIC ? 1 : id == CLOCK_BOOTTIME ? 2 : -1;
    if (result || clock < 0) return result;
    __int128 all = (__int128)time->tv_sec * 1000000000 + time->tv_nsec + nanos[clock];
    time->tv_sec = all / 1000000000;
    time->tv_nsec = all % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Where in the file each clock's offset stands.
#[derive(Clone, Copy, Debug)]
enum Clock {
    Calendar = 0,
    Running = 8,
    SinceBoot = 16,
}

/// The clocks of the programs started with them.
#[derive(Debug)]
pub struct Clocks {
    library: PathBuf,
    path: PathBuf,
    file: File,
    stopped: Mutex<Duration>,
}

impl Clocks {
    /// Makes the library and its file in `directory`. `None` (said on standard error) where there is no C compiler, or the
    /// program is linked so that nothing can be laid under it.
    pub fn new(directory: &Path) -> Option<Self> {
        if !installed("cc") {
            return None;
        }
        let program = fs::read(env!("CARGO_BIN_EXE_tributary")).unwrap();
        if !program.windows(8).any(|bytes| bytes == b"ld-linux") {
            figure("skipped: the program is not linked with glibc as a shared library");
            return None;
        }
        let (source, library) = (directory.join("clocks.c"), directory.join("clocks.so"));
        fs::write(&source, SHIM).unwrap();
        let mut compile = Command::new("cc");
        compile.args(["-O1", "-shared", "-fPIC", "-o"]);
        let compiled = compile.arg(&library).arg(&source).arg("-ldl").output().unwrap();
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        let path = directory.join("clocks");
        fs::write(&path, [0; 24]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        Some(Self {
            library,
            path,
            file,
            stopped: Mutex::default(),
        })
    }

    /// Lets a program go by these clocks.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("LAB_CLOCKS", &self.path);
    }

    /// Moves the calendar by so many seconds from what it really is.
    #[track_caller]
    pub fn calendar(&self, seconds: i64) {
        self.set(Clock::Calendar, i128::from(seconds) * 1_000_000_000);
    }

    /// Sets the calendar to so many seconds after 1970.
    #[track_caller]
    pub fn calendar_at(&self, seconds: i64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        self.calendar(seconds - now.as_secs().cast_signed());
    }

    /// As after a sleep that began at `since` and took `slept`: the clock that stands still while the device is suspended
    /// has not seen anything of it, the others have.
    #[track_caller]
    pub fn slept(&self, since: Instant, slept: Duration) {
        let stopped = {
            let mut stopped = self.stopped.lock().unwrap();
            *stopped += since.elapsed();
            *stopped
        };
        let ahead = slept.saturating_sub(since.elapsed());
        self.set(Clock::Running, -(stopped.as_nanos().cast_signed()));
        self.set(Clock::SinceBoot, ahead.as_nanos().cast_signed());
        self.set(Clock::Calendar, ahead.as_nanos().cast_signed());
    }

    #[track_caller]
    fn set(&self, clock: Clock, nanos: i128) {
        let nanos = i64::try_from(nanos).map_err(io::Error::other).unwrap();
        self.file
            .write_all_at(&nanos.to_ne_bytes(), clock as u64)
            .unwrap();
    }
}
