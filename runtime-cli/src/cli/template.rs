//! The arguments of `rvm template`.

use clap::{Args, Subcommand};

use super::Format;
use super::texts;

/// The arguments of `rvm template`.
#[derive(Args, Debug)]
pub struct TemplateArgs {
    /// What to do with the templates
    #[command(subcommand)]
    pub verb: TemplateVerb,
}

/// The verbs of `rvm template`.
#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// List the templates, those used last first
    #[command(long_about = texts::TEMPLATE_LIST)]
    List(TemplateListArgs),
    /// Make a template, unless there is one
    #[command(long_about = texts::TEMPLATE_CREATE, after_long_help = texts::TEMPLATE_EXAMPLE)]
    Create(TemplateCreateArgs),
    /// Remove templates; machines that were started from them keep running
    Remove(TemplateRemoveArgs),
}

/// The arguments of `rvm template list`.
#[derive(Args, Debug)]
pub struct TemplateListArgs {
    /// Format: table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
}

/// The arguments of `rvm template create`.
#[derive(Args, Debug)]
pub struct TemplateCreateArgs {
    /// Memory of a container, such as 512m or 4g [default: memory_mib of the configuration]
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// vCPUs of a container [default: vcpus of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub vcpus: Option<u64>,
}

/// The arguments of `rvm template remove`.
#[derive(Args, Debug)]
pub struct TemplateRemoveArgs {
    /// Remove all templates
    #[arg(short, long, conflicts_with = "ids")]
    pub all: bool,
    /// The templates' ids, as rvm template list prints them
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub ids: Vec<String>,
}
