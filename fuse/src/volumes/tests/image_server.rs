//! A FUSE server for tests: one directory with one image in it. It speaks directly to /dev/fuse, so that it can die
//! like a killed process, by losing its descriptor. Handles only the requests that loop devices and these tests make
//! (linux/fuse.h, 7.31).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sys::{self, Writable};

/// The name of the image in the mount.
pub const IMAGE: &str = "p1.img";

/// A running server.
pub struct ImageServer {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ImageServer {
    /// Mounts at `dir` and serves `image` there.
    pub fn start(dir: &Path, image: &Path) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let device = options
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open("/dev/fuse")
            .expect("opens");
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        sys::mount(Path::new("vbk"), dir, "fuse.vbk", Writable::No, &data).expect("mounts");
        let image = File::open(image).expect("opens");
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread = thread::Builder::new().name("image-server".into());
        let thread = thread.spawn(move || serve(device, &image, &told)).expect("starts");
        Self {
            end,
            thread: Some(thread),
        }
    }

    /// Ends like a process that gets SIGKILL: /dev/fuse is closed, nothing is unmounted.
    pub fn kill(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        self.wait();
    }

    /// Waits for the server to end, as it does when its mount is gone.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("does not panic");
        }
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(mut device: File, image: &File, end: &AtomicBool) {
    let mut request = vec![0; 1 << 20];
    while !end.load(Ordering::SeqCst) {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => return,
            Err(_) => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        if let Some(answer) = answer(&request[..length], image) {
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend(u32::try_from(16 + body.len()).expect("is short").to_le_bytes());
            reply.extend(error.to_le_bytes());
            reply.extend(&request[8..16]);
            reply.extend(body);
            // An interrupted request gets no answer.
            let _ = device.write(&reply);
        }
    }
}

fn u64_at(request: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(request[offset..offset + 8].try_into().expect("has this length"))
}

fn u32_at(request: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(request[offset..offset + 4].try_into().expect("has this length"))
}

/// The answer to a request, if it needs one.
fn answer(request: &[u8], image: &File) -> Option<Result<Vec<u8>, i32>> {
    const ROOT: u64 = 1;
    const FILE: u64 = 2;
    let node = u64_at(request, 16);
    let body = &request[40..];
    Some(Ok(match u32_at(request, 4) {
        2 | 36 | 42 => return None, // FORGET, INTERRUPT, BATCH_FORGET
        1 if node == ROOT && body == [IMAGE.as_bytes(), b"\0"].concat() => {
            let mut entry = words(&[FILE, 0, 3600, 3600, 0]);
            entry.extend(attributes(FILE, image));
            entry
        }
        1 => return Some(Err(nix::libc::ENOENT)),
        3 => [words(&[3600, 0]), attributes(node, image)].concat(), // GETATTR
        14 | 27 => words(&[0, 0]),                                  // OPEN, OPENDIR
        15 => {
            let mut data = vec![0; u32_at(body, 16) as usize];
            let length = image.read_at(&mut data, u64_at(body, 8)).expect("reads");
            data.truncate(length);
            data
        }
        17 => vec![0; 80],                    // STATFS
        18 | 25 | 28 | 29 | 38 => Vec::new(), // RELEASE, FLUSH, READDIR, RELEASEDIR, DESTROY
        26 => {
            let mut init = Vec::new();
            for word in [7, 31, 131_072, 0, 0, 4096] {
                init.extend(u32::to_le_bytes(word));
            }
            init.resize(64, 0);
            init
        }
        _ => return Some(Err(nix::libc::ENOSYS)),
    }))
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct fuse_attr`.
fn attributes(node: u64, image: &File) -> Vec<u8> {
    let (mode, size) = match node {
        1 => (0o040_755, 0),
        _ => (0o100_444, image.metadata().expect("exists").len()),
    };
    let mut attributes = words(&[node, size, size / 512, 0, 0, 0]);
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        attributes.extend(u32::to_le_bytes(word));
    }
    attributes
}
