//! The command `vbk-wire`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command prints")]

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::sys::wait::{WaitStatus, wait};
use vbk_wire::proxy::{Address, Fault, Faults, Proxy, Stall};
use vbk_wire::settings::{parse_rate, parse_share, parse_time};
use vbk_wire::{SERVER, Settings, Side, Wire, control, sys};

/// Address of the server, for COMMAND.
const SERVER_ENV: &str = "VBK_WIRE_SERVER";
/// File of the server's network namespace.
const NAMESPACE_ENV: &str = "VBK_WIRE_NETNS_SERVER";
/// Socket of the control.
const CONTROL_ENV: &str = "VBK_WIRE_CONTROL";

const EXAMPLE: &str = "\
Example:
  vbk-wire --delay 100ms --rate 1000 -- sh -c '
      vbk-wire server -- python3 -m http.server 5000 &
      curl -s --retry 9 --retry-connrefused $VBK_WIRE_SERVER:5000/big -o /dev/null; vbk-wire control stats'";

/// Runs a command behind a long, thin or broken wire.
///
/// Makes two network namespaces with a wire between them and runs COMMAND in the client's (10.77.0.1). Servers for it
/// are started in the other one (10.77.0.2) by `vbk-wire server`, from COMMAND. When COMMAND ends, everything it
/// started is killed and its mounts are gone, too; the exit status is that of COMMAND. Needs root; changes nothing of
/// this host's network.
///
/// COMMAND has in its environment VBK_WIRE_SERVER, the server's address; VBK_WIRE_NETNS_SERVER, the file of its
/// network namespace, for nsenter --net=; VBK_WIRE_CONTROL, the socket of `vbk-wire control`.
#[derive(Parser)]
#[command(
    name = "vbk-wire",
    after_help = EXAMPLE,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct Run {
    /// Round trip, e.g. 100ms: half of it in each direction
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    delay: Duration,
    /// Mbit/s in each direction [default: what this machine can do]
    #[arg(long, value_name = "MBIT/S", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Share of packets that are lost, e.g. 0.1%
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = parse_share)]
    loss: f64,
    /// Bytes that wait where the rate ends; more are dropped [default: those of a round trip, at least 1 MiB]
    #[arg(long, value_name = "BYTES", requires = "rate")]
    queue: Option<u64>,
    /// Seed of what is lost
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Congestion control of TCP on both sides: cubic, bbr, reno
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    congestion: String,
    /// This is the first process of the namespaces.
    #[arg(long, hide = true)]
    inside: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Subcommand)]
enum Other {
    /// Runs a command on the server's side of the wire; only from a command of vbk-wire
    Server {
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Changes the wire, or shows what passed; only from a command of vbk-wire
    #[command(after_help = format!("Lines:\n{}", control::HELP))]
    Control {
        /// What to do, e.g. cut 30s
        #[arg(required = true)]
        line: Vec<String>,
    },
    /// Forwards streams and breaks them; "up" are the bytes that the client sends
    Proxy(Forward),
}

#[derive(Args)]
struct Forward {
    /// Address for clients, HOST:PORT or unix:PATH; with port 0, a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// Address of the server
    #[arg(long, value_name = "ADDRESS")]
    to: Address,
    /// Cuts a connection after this many bytes of the client
    #[arg(long, value_name = "BYTES")]
    cut_up: Option<u64>,
    /// Cuts a connection after this many bytes of the server
    #[arg(long, value_name = "BYTES")]
    cut_down: Option<u64>,
    /// Pauses after this many bytes of the client, e.g. 1000:10s
    #[arg(long, value_name = "BYTES:TIME", value_parser = parse_stall)]
    stall_up: Option<Stall>,
    /// Pauses after this many bytes of the server
    #[arg(long, value_name = "BYTES:TIME", value_parser = parse_stall)]
    stall_down: Option<Stall>,
    /// Forwards only this many bytes a second of the client
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate_up: Option<u64>,
    /// Forwards only this many bytes a second of the server
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate_down: Option<u64>,
    /// Breaks only the first ones [default: all]
    #[arg(long, value_name = "NUMBER")]
    connections: Option<u64>,
}

fn parse_stall(text: &str) -> Result<Stall, String> {
    let (bytes, time) = text.split_once(':').ok_or("not BYTES:TIME, e.g. 1000:10s")?;
    Ok(Stall {
        after_bytes: bytes.parse().map_err(|_| format!("{bytes:?} is not a number"))?,
        time: parse_time(time)?,
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.other {
        None if arguments.run.inside => inside(arguments.run),
        None => outside(),
        Some(Other::Server { command }) => server(&command),
        Some(Other::Control { line }) => send(&line.join(" ")),
        Some(Other::Proxy(forward)) => proxy(forward),
    };
    result.unwrap_or_else(|error| {
        eprintln!("vbk-wire: {error}");
        ExitCode::from(125)
    })
}

/// Starts this program again as the first process of a process namespace. The kernel kills that process when this one
/// ends, and with it everything in the namespace.
fn outside() -> io::Result<ExitCode> {
    sys::unshare_processes().map_err(|error| context("a process namespace", error))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("vbk-wire")
        .arg("--inside")
        .args(std::env::args_os().skip(1));
    sys::die_with_parent(&mut command);
    let status = command.status()?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(exit_code(code.unwrap_or(1)))
}

/// Makes the wire, runs the command, and takes care of processes that lost their parent.
fn inside(run: Run) -> io::Result<ExitCode> {
    sys::unshare_mounts().map_err(|error| context("mounts of its own", error))?;
    let wire = Arc::new(Wire::new(&Settings {
        delay: run.delay,
        rate_mbit_per_sec: run.rate,
        loss: run.loss,
        queue_bytes: run.queue,
        seed: run.seed,
        congestion: run.congestion,
    })?);
    let socket = control::serve(Arc::clone(&wire), &std::env::temp_dir())?;
    let namespace = wire.namespace(Side::Server).as_raw_fd();
    let namespace = format!("/proc/{}/fd/{namespace}", std::process::id());
    let child = wire
        .command(Side::Client, &run.command[0])?
        .args(&run.command[1..])
        .env(SERVER_ENV, SERVER.to_string())
        .env(NAMESPACE_ENV, namespace)
        .env(CONTROL_ENV, socket)
        .spawn()
        .map_err(|error| context(&run.command[0].to_string_lossy(), error))?;
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid.as_raw() as u32 == child.id() => return Ok(exit_code(code)),
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() as u32 == child.id() => {
                return Ok(exit_code(128 + signal as i32));
            }
            _ => {}
        }
    }
}

fn server(command: &[OsString]) -> io::Result<ExitCode> {
    let namespace = std::fs::File::open(from_wire(NAMESPACE_ENV)?)?;
    let mut server = Command::new(&command[0]);
    sys::start_in(&mut server, namespace.into());
    Err(context(
        &command[0].to_string_lossy(),
        server.args(&command[1..]).exec(),
    ))
}

fn send(line: &str) -> io::Result<ExitCode> {
    println!("{}", control::send(&from_wire(CONTROL_ENV)?, line)?);
    Ok(ExitCode::SUCCESS)
}

fn from_wire(name: &str) -> io::Result<PathBuf> {
    let value = std::env::var_os(name);
    value
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("{name} is not set: run this from a command of vbk-wire")))
}

/// Forwards until it is killed; prints the address, and a line for each connection that has ended.
fn proxy(forward: Forward) -> io::Result<ExitCode> {
    let faults = Faults {
        up: Fault {
            cut_after_bytes: forward.cut_up,
            stall: forward.stall_up,
            bytes_per_sec: forward.rate_up,
        },
        down: Fault {
            cut_after_bytes: forward.cut_down,
            stall: forward.stall_down,
            bytes_per_sec: forward.rate_down,
        },
        connections: forward.connections,
    };
    let proxy = Proxy::listen(&forward.listen, forward.to, faults)?;
    println!("listening on {}", proxy.address());
    loop {
        if let Some(ended) = proxy.next_end(Duration::from_secs(3600)) {
            let how = if ended.cut { "cut" } else { "closed" };
            let (up, down) = (ended.up_bytes, ended.down_bytes);
            println!(
                "connection {} {how}: {up} bytes up, {down} bytes down",
                ended.connection
            );
        }
    }
}

fn context(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
