//! The arguments of `vbk status`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `vbk status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Write figures of the repository to this file of metrics for Prometheus (node_exporter's textfile collector), and keep what
    /// other commands wrote there
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
}
