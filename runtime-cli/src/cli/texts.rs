//! The longer texts of the help and the manual pages.

/// As runc's help is laid out.
pub const LAYOUT: &str = "\
NAME:
   {bin} - {about-with-newline}
USAGE:
   {usage}

{all-args}{after-help}";

pub const CREATE: &str = "\
Create a container

A container is made from a bundle: a directory with a configuration, config.json, as the OCI runtime \
specification has it, and the root file system that the configuration names. `rvm spec` writes a \
configuration to begin with.

A virtual machine is started for the container, of the size that its limits ask for, and in it the \
container is made up to the point where only its program is missing: `rvm start` executes that. The \
process whose id is reported stands for the container on this host; it holds the standard streams \
that this command was given, and ends with the program's exit code.";

pub const RUN: &str = "\
Create and run a container

As `rvm create` and `rvm start` together. Without --detach the container runs in the foreground: \
signals are passed on to its program, this command ends with the program's exit code, and the \
container is deleted then.";

pub const START: &str = "\
Execute the program of a created container

It is the one that process.args of config.json named when the container was created.";

pub const KILL: &str = "\
Send a signal to a container

It is sent to the container's init process, or with --all to every one. One that has ended already \
is an error, but not with --all.";

pub const KILL_EXAMPLE: &str = "\
EXAMPLE:
   To send SIGKILL to the init process of the container ubuntu01:

      # rvm kill ubuntu01 KILL";

pub const DELETE: &str = "\
Delete a container and what belongs to it

The container must have stopped, or never have been started; --force kills it first. Nothing of it \
is left on this host then.";

pub const EXEC: &str = "\
Execute a program in a running container

The program runs in the container, in its virtual machine, as the container's own would: what the \
options do not say is taken from config.json. This command ends with the program's exit code, with \
128 and its number after a signal, and with 255 if the program cannot be executed.

With --detach this command ends when the program runs. The process whose id --pid-file tells stands \
for it on this host, and ends with its exit code.";

pub const EXEC_EXAMPLE: &str = "\
EXAMPLE:
   To list the processes of the container ubuntu01 with its own ps:

      # rvm exec ubuntu01 ps

   To have a shell there at this terminal:

      # rvm exec --tty ubuntu01 sh";

pub const PS: &str = "\
Print the processes of a container, as the guest numbers them

The table is that of `ps -ef`. The ids are those of the virtual machine, where the container's first \
process is not number 1; those of this host know nothing of them.";

pub const PAUSE: &str = "\
Make every process of a container stand still

They stand where they are until `rvm resume`, and need no CPU. Signals wait, but for SIGKILL.";

pub const UPDATE: &str = "\
Change the limits of a container

What no option names stays as it is. The limits change in the guest and for the processes of this \
host that run it.";

pub const UPDATE_EXAMPLE: &str = "\
EXAMPLE:
   To give the container ubuntu01 half a CPU and at most 100 processes:

      # rvm update --cpu-period 100000 --cpu-quota 50000 --pids-limit 100 ubuntu01

   The same from standard input:

      # echo '{\"cpu\": {\"period\": 100000, \"quota\": 50000}, \"pids\": {\"limit\": 100}}' |
           rvm update --resources - ubuntu01";

pub const OVERHEAD: &str = "\
Print what a machine takes beside its containers, for Kubernetes

Memory is what the guest's kernel and the host's processes need; the cgroup of a container's machine has \
the same above the container's limit. CPU time is what to set aside for devices. Both depend on the \
engine, and memory grows with that of the pod, by about a 40th.

The output is the part of a RuntimeClass that Kubernetes adds to every pod of it.";

pub const OVERHEAD_EXAMPLE: &str = "\
EXAMPLE:
   To have Kubernetes count it, where pods use at most 4 GiB:

      # kubectl patch runtimeclass rvm --patch \"$(rvm overhead --memory 4g)\"";

pub const EVENTS: &str = "\
Report what a container uses, and when the kernel kills processes of it for memory

Each report is a line with a JSON object, in runc's shape: of type stats in every interval, and of \
type oom. The numbers are the guest's. The command ends with the container.";

pub const LIST_EXAMPLE: &str = "\
EXAMPLE:
   To list the containers whose state is not below /run/rvm:

      # rvm --root /run/docker/runtime-runc/moby list";

pub const SPEC: &str = "\
Write a configuration to begin with

The file config.json runs a shell at a terminal, in the root file system in rootfs beside it. What \
its fields mean says the OCI runtime specification.";

pub const SPEC_EXAMPLE: &str = "\
EXAMPLE:
   To run a busybox:

      # mkdir -p hello/rootfs/bin && cd hello
      # cp /bin/busybox rootfs/bin/sh
      # rvm spec
      # rvm run hello";
