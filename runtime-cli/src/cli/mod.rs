//! The command line: runc's verbs and options, and a few that runc does not have. Doc comments of
//! the options are the texts of the help.

mod checkpoint;
mod exec;
mod monitor;
mod running;
mod template;
mod texts;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{Resettable, StyledStr};
use clap::{
    ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use rvm_sandbox::cgroup::Driver;
use rvm_sandbox::config::{Config, ConfigError, EngineChoice};
use rvm_sandbox::state::Store;

pub use checkpoint::{CheckpointArgs, ForkArgs, ImageArgs, RestoreArgs};
pub use exec::ExecArgs;
pub use monitor::{ExecMonitorArgs, MonitorArgs};
pub use running::{EventsArgs, Format, OverheadArgs, PsArgs, SpecArgs, UpdateArgs};
pub use template::{
    TemplateArgs, TemplateCreateArgs, TemplateListArgs, TemplateRemoveArgs, TemplateVerb,
};

/// What --version prints, in runc's form, which engines parse.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

/// OCI runtime that puts every container in its own virtual machine
#[derive(Debug, Parser)]
#[command(
    name = "rvm",
    version = VERSION,
    arg_required_else_help = true,
    args_override_self = true,
    subcommand_required = true,
    disable_version_flag = true
)]
pub struct Cli {
    /// Print the version
    #[arg(short, long, action = ArgAction::Version)]
    pub version: Option<bool>,
    /// Options of every verb
    #[command(flatten)]
    pub global: Global,
    /// The verb
    #[command(subcommand)]
    pub verb: Verb,
}

/// The description of the command line, with a help laid out as runc's.
pub fn command() -> Command {
    let mut command = Cli::command();
    let described: Vec<Command> = command.get_subcommands().cloned().collect();
    // Before that, no verb has its options and its own verbs. With them comes the description of
    // the options' type in place of the verb's.
    command.build();
    let command = described.into_iter().fold(command, |command, verb| {
        let (about, long_about) = (verb.get_about().cloned(), verb.get_long_about().cloned());
        command.mut_subcommand(verb.get_name(), |built| {
            built
                .about(resettable(about))
                .long_about(resettable(long_about))
        })
    });
    with_layout(command)
}

fn resettable(text: Option<StyledStr>) -> Resettable<StyledStr> {
    text.map_or(Resettable::Reset, Resettable::Value)
}

fn with_layout(command: Command) -> Command {
    let verbs: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    let command = command.help_template(texts::LAYOUT);
    verbs.into_iter().fold(command, |command, verb| {
        command.mut_subcommand(verb, with_layout)
    })
}

/// Reads the command line of this process.
pub fn read() -> Result<Cli, clap::Error> {
    // The layout of the help is made only where parsing fails, which is also how help is asked for.
    Cli::try_parse().or_else(|_| Cli::from_arg_matches(&command().try_get_matches()?))
}

/// The options that every verb takes, before it or after it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Directory for the state of containers; it should be on a tmpfs
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/rvm")]
    pub root: PathBuf,
    /// File to append messages to, instead of standard error
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the messages in the file
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Also log details for troubleshooting
    #[arg(long, global = true)]
    pub debug: bool,
    /// Configuration file [default: /etc/rvm/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Let systemd create the containers' cgroups; linux.cgroupsPath is then slice:prefix:name
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Engine that runs the machines: auto, kvm or qemu [default: as configured]
    #[arg(long, global = true, value_name = "ENGINE")]
    pub engine: Option<EngineChoice>,
}

/// The format of the log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// time="…" level=… msg="…"
    Text,
    /// One JSON object a line
    Json,
}

/// The verbs, with their options, of which only those of the verb that is asked for are built: all
/// of them would be most of what a short verb costs, and of what a monitor's heap has held.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Create a container
    #[command(long_about = texts::CREATE)]
    Create(CreateArgs),
    /// Execute the program of a created container
    #[command(long_about = texts::START)]
    Start(IdArgs),
    /// Print the state of a container
    State(IdArgs),
    /// Send a signal to a container
    #[command(long_about = texts::KILL, after_long_help = texts::KILL_EXAMPLE)]
    Kill(KillArgs),
    /// Delete a container and everything that belongs to it
    #[command(long_about = texts::DELETE)]
    Delete(DeleteArgs),
    /// Create and run a container
    #[command(long_about = texts::RUN)]
    Run(RunArgs),
    /// Execute a program in a running container
    #[command(long_about = texts::EXEC, after_long_help = texts::EXEC_EXAMPLE)]
    Exec(Box<ExecArgs>),
    /// Print the processes of a container, with their ids in the guest
    #[command(long_about = texts::PS)]
    Ps(PsArgs),
    /// Pause every process of a container
    #[command(long_about = texts::PAUSE)]
    Pause(IdArgs),
    /// Resume the processes of a paused container
    Resume(IdArgs),
    /// Change the limits of a container
    #[command(long_about = texts::UPDATE, after_long_help = texts::UPDATE_EXAMPLE)]
    Update(Box<UpdateArgs>),
    /// Report what a container uses, and the processes killed for lack of memory
    #[command(long_about = texts::EVENTS)]
    Events(EventsArgs),
    /// List the containers
    #[command(after_long_help = texts::LIST_EXAMPLE)]
    List(ListArgs),
    /// Write a configuration to begin with
    #[command(long_about = texts::SPEC, after_long_help = texts::SPEC_EXAMPLE)]
    Spec(SpecArgs),
    /// Print the features of this runtime, as JSON
    Features,
    /// Check this host, and print which engine rvm uses and why
    Check,
    /// Print the overhead of a machine beyond its containers, for Kubernetes
    #[command(long_about = texts::OVERHEAD, after_long_help = texts::OVERHEAD_EXAMPLE)]
    Overhead(OverheadArgs),
    /// List, make and remove the templates that machines are restored from
    #[command(long_about = texts::TEMPLATE)]
    Template(TemplateArgs),
    /// Write a container, with its machine, to a checkpoint
    #[command(long_about = texts::CHECKPOINT, after_long_help = texts::CHECKPOINT_EXAMPLE)]
    Checkpoint(Box<CheckpointArgs>),
    /// Let a container go on from a checkpoint
    #[command(long_about = texts::RESTORE)]
    Restore(Box<RestoreArgs>),
    /// Start copies of a running container, which go on from where it is
    #[command(long_about = texts::FORK, after_long_help = texts::FORK_EXAMPLE)]
    Fork(ForkArgs),
    /// Run a container that `rvm create` creates
    #[command(hide = true)]
    Monitor(MonitorArgs),
    /// Run a process that `rvm exec --detach` adds
    #[command(hide = true)]
    ExecMonitor(ExecMonitorArgs),
}

impl Verb {
    /// The verb as it is on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::State(_) => "state",
            Self::Kill(_) => "kill",
            Self::Delete(_) => "delete",
            Self::Run(_) => "run",
            Self::Exec(_) => "exec",
            Self::Ps(_) => "ps",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Update(_) => "update",
            Self::Events(_) => "events",
            Self::List(_) => "list",
            Self::Spec(_) => "spec",
            Self::Features => "features",
            Self::Checkpoint(_) => "checkpoint",
            Self::Restore(_) => "restore",
            Self::Fork(_) => "fork",
            Self::Check => "check",
            Self::Overhead(_) => "overhead",
            Self::Template(_) => "template",
            Self::Monitor(_) => "monitor",
            Self::ExecMonitor(_) => "exec-monitor",
        }
    }
}

/// The arguments of verbs that take a container and no options.
#[derive(Args, Debug)]
pub struct IdArgs {
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// The arguments of `rvm create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Directory of the bundle
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub bundle: PathBuf,
    /// Unix socket that receives the controlling end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process that represents the container
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the container's process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Number of descriptors, from 3 on, to pass to the container, after those of LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
    /// No effect: the guest can pivot into any root
    #[arg(long)]
    pub no_pivot: bool,
    /// No effect: in the guest only the container's own session keyring is in reach
    #[arg(long)]
    pub no_new_keyring: bool,
    /// The container's id, unique on this host
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

impl CreateArgs {
    /// Those without options.
    pub fn new(bundle: PathBuf, id: &str) -> Self {
        Self {
            bundle,
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            id: id.to_owned(),
        }
    }
}

/// The arguments of `rvm run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// As for create
    #[command(flatten)]
    pub create: CreateArgs,
    /// Leave the container running in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// No effect: leftovers of a container stay in the guest
    #[arg(long)]
    pub no_subreaper: bool,
    /// Print the time of each stage of the start to standard error
    #[arg(long)]
    pub timings: bool,
}

/// The arguments of `rvm kill`.
#[derive(Args, Debug)]
pub struct KillArgs {
    /// Signal all processes of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Name or number of the signal
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: String,
}

/// The arguments of `rvm delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// Kill the container first if it still runs; one that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// The arguments of `rvm list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Format: table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
}

impl Global {
    /// The containers below --root, an absolute path.
    pub fn store(&self) -> Store {
        // A monitor works in another directory. Only an empty path fails.
        let root = std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone());
        Store::new(root)
    }

    /// The configuration file, with the engine that --engine names.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(engine) = self.engine {
            config.engine = engine;
        }
        Ok(config)
    }

    /// Who makes the cgroups of containers.
    pub fn driver(&self) -> Driver {
        match self.systemd_cgroup {
            true => Driver::Systemd,
            false => Driver::Cgroupfs,
        }
    }

    /// These options as arguments, for a monitor.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = vec!["--root".into(), self.root.clone().into()];
        if let Some(log) = &self.log {
            list.extend(["--log".into(), log.clone().into_os_string()]);
        }
        if self.log_format == LogFormat::Json {
            list.extend(["--log-format".into(), "json".into()]);
        }
        if self.debug {
            list.push("--debug".into());
        }
        if self.systemd_cgroup {
            list.push("--systemd-cgroup".into());
        }
        if let Some(config) = &self.config {
            list.extend(["--config".into(), config.clone().into_os_string()]);
        }
        if let Some(engine) = self.engine {
            list.extend(["--engine".into(), engine.to_string().into()]);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sandbox::config::EngineKind;
    use rvm_sandbox::spec::SPEC_VERSION;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn options_may_be_before_or_after_the_verb_and_the_id() {
        for line in [
            "rvm --root /r --debug create --bundle /b box",
            "rvm create --root /r --bundle /b --debug box",
            "rvm create box --bundle /b --root /r --debug",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.root, PathBuf::from("/r"), "{line}");
            assert!(cli.global.debug);
            let Verb::Create(args) = cli.verb else {
                panic!("{line}")
            };
            assert_eq!((args.bundle, args.id), ("/b".into(), "box".to_owned()));
        }
    }

    #[test]
    fn of_an_option_given_twice_the_last_one_counts() {
        let line = "rvm --root /a --debug --root /b --debug state box";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.global.root, PathBuf::from("/b"));
        let line = "rvm exec -e A=1 -e B=2 box env";
        let Verb::Exec(args) = Cli::try_parse_from(line.split(' ')).unwrap().verb else {
            panic!()
        };
        assert_eq!(args.env, ["A=1", "B=2"]);
    }

    #[test]
    fn the_version_names_that_of_the_specification() {
        assert!(VERSION.ends_with(&format!("\nspec: {SPEC_VERSION}")));
    }

    #[test]
    fn a_monitor_gets_the_global_options() {
        let line = "rvm --root /r --log /l --log-format json --debug --systemd-cgroup \
                    --config /c --engine qemu";
        let cli = Cli::try_parse_from(line.split_whitespace().chain(["state", "box"])).unwrap();
        let again = cli.global.arguments();
        let again: Vec<OsString> = [
            vec!["rvm".into()],
            again,
            vec!["state".into(), "box".into()],
        ]
        .concat();
        let again = Cli::try_parse_from(again).unwrap();
        assert_eq!(again.global.arguments(), cli.global.arguments());
        assert_eq!(
            again.global.engine,
            Some(EngineChoice::Only(EngineKind::Qemu))
        );
    }
}
