//! What the tests share: a directory with a repository, images with file systems in them, the program's runs, the kernel's tables.

/// Arguments of different types as one list: `args!["backup", "web1", path]`.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$(std::ffi::OsString::from(&$arg)),*] };
}

pub mod apart;
pub mod bytes;
pub mod disk;
pub mod inside;
pub mod kernel;
pub mod lab;
pub mod remote;
pub mod run;
pub mod small;
pub mod tools;
