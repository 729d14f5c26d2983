//! The longer texts of the help and the manual pages.

/// The layout of runc's help.
pub const LAYOUT: &str = "\
NAME:
   {bin} - {about-with-newline}
USAGE:
   {usage}

{all-args}{after-help}";

pub const CREATE: &str = "\
Create a container

A container is made from a bundle: a directory with a configuration, config.json, in the format \
of the OCI runtime specification, and the root file system that it names. `rvm spec` writes a \
configuration to begin with.

This command starts a virtual machine of the size that the container's limits ask for, and \
creates the container in it, up to its program. `rvm start` executes the program. The process \
whose id is reported represents the container on this host: it holds the standard streams of this \
command, and exits with the program's exit code.";

pub const RUN: &str = "\
Create and run a container

Like `rvm create` followed by `rvm start`. Without --detach the container runs in the foreground: \
this command passes signals to the program, exits with its exit code, and deletes the \
container.";

pub const START: &str = "\
Execute the program of a created container

The program is the one in process.args of config.json when the container was created.";

pub const CHECKPOINT: &str = "\
Write a container, with its machine, to a checkpoint

The container is saved as it is: its processes, their memory and their open files, deleted ones \
too. It has ended then, and is deleted, unless it is left running. `rvm restore` lets it go on from \
the checkpoint, as often as is wanted. A file that the container has changed since is as it is on \
the host, and not as it was. A pod is saved with all of its containers, by the first one's id.

The checkpoint holds whatever the container's processes had in memory, keys and passwords, too. \
Only the engine kvm can write one.";

pub const CHECKPOINT_EXAMPLE: &str = "\
EXAMPLE:
   To save the container ubuntu01 and have it go on later:

      # rvm checkpoint --image-path /var/lib/saved ubuntu01
      # rvm restore --image-path /var/lib/saved --bundle /containers/ubuntu01 --detach ubuntu01";

pub const RESTORE: &str = "\
Let a container go on from a checkpoint

The container has its processes and their memory as they were, and the files, limits and network \
that the bundle gives it now. Connections to other machines are as if the cable had been pulled. \
Processes that `rvm exec` had added end. Without --detach the container runs in the foreground, as \
with `rvm run`.

The checkpoint must be of this rvm and of a host with the same CPU. Its files are read as long as \
the container runs: they may be removed meanwhile, and must not be changed.";

pub const FORK: &str = "\
Start copies of a running container, which go on from where it is

Each copy has the container's processes and their memory as they are at one moment, which copies \
share until one of them changes it, and a network, a host name, a cgroup and random numbers of its \
own. The container stands still for a moment, and runs on. The copies run in the background, with \
the standard streams of this command; if one cannot be started, the others run all the same.

A copy whose bundle is not in --bundle gets one: the container's config.json, with another \
hostname and cgroupsPath and a network namespace that is its own and empty, and a copy of the \
root, unless that is read-only. The container stands still while its root is copied: prepare the \
bundles where that would take long. Volumes are shared with the container.

Only the engine kvm can copy containers.";

pub const FORK_EXAMPLE: &str = "\
EXAMPLE:
   To make two copies of the container ubuntu01, in /containers/ubuntu02 and /containers/ubuntu03:

      # rvm fork --bundle /containers ubuntu01 ubuntu02 ubuntu03";

pub const KILL: &str = "\
Send a signal to a container

The signal goes to the container's init process, or with --all to all of its processes. It is an \
error if the container has stopped, except with --all.";

pub const KILL_EXAMPLE: &str = "\
EXAMPLE:
   To send SIGKILL to the init process of the container ubuntu01:

      # rvm kill ubuntu01 KILL";

pub const DELETE: &str = "\
Delete a container and everything that belongs to it

The container must have stopped or must not have been started; --force kills it first. Nothing of \
it is left on this host.";

pub const EXEC: &str = "\
Execute a program in a running container

The program runs in the container, in its virtual machine. Settings that no option changes come \
from config.json. This command exits with the program's exit code, with 128 plus the signal's \
number if a signal ended it, and with 255 if the program cannot be executed.

With --detach this command ends when the program runs. The process whose id is written to \
--pid-file represents it on this host, and exits with its exit code.";

pub const EXEC_EXAMPLE: &str = "\
EXAMPLE:
   To list the processes of the container ubuntu01 with its own ps:

      # rvm exec ubuntu01 ps

   To open a shell in it at this terminal:

      # rvm exec --tty ubuntu01 sh";

pub const PS: &str = "\
Print the processes of a container, with their ids in the guest

The table has the columns of `ps -ef`, or those of the options of ps(1) that follow the container: \
-e and -A without -f for the short table, -o with a list of columns such as pid,user,stat,rss,args. \
The ids are those in the virtual machine, where the container's init process is not number 1. They \
mean nothing on this host.";

pub const PAUSE: &str = "\
Pause every process of a container

The processes stop until `rvm resume`, and use no CPU. Signals other than SIGKILL wait until then.";

pub const UPDATE: &str = "\
Change the limits of a container

Limits without an option stay as they are. The change applies in the guest and to the processes \
on this host that run it.";

pub const UPDATE_EXAMPLE: &str = "\
EXAMPLE:
   To give the container ubuntu01 half a CPU and at most 100 processes:

      # rvm update --cpu-period 100000 --cpu-quota 50000 --pids-limit 100 ubuntu01

   The same from standard input:

      # echo '{\"cpu\": {\"period\": 100000, \"quota\": 50000}, \"pids\": {\"limit\": 100}}' |
           rvm update --resources - ubuntu01";

pub const OVERHEAD: &str = "\
Print the overhead of a machine beyond its containers, for Kubernetes

Memory is that of the guest's kernel and of the processes on the host. The cgroup of a \
container's machine has the same allowance above the container's limit. CPU time is for devices. \
Both depend on the engine, and memory grows with that of the pod, by about a 40th.

The output is the part of a RuntimeClass that Kubernetes adds to each of its pods.";

pub const OVERHEAD_EXAMPLE: &str = "\
EXAMPLE:
   To set the overhead in Kubernetes for pods of at most 4 GiB:

      # kubectl patch runtimeclass rvm --patch \"$(rvm overhead --memory 4g)\"";

pub const TEMPLATE: &str = "\
List, make and remove the templates that machines are restored from

A template is a machine that has booted until its agent was ready. Where templates is \"auto\" in \
rvm's configuration, the first start of each kind of machine makes one, and the others are restored \
from it. Only the kvm engine has templates.";

pub const TEMPLATE_LIST: &str = "\
List the templates, those used last first

A template is stale if the kernel, the initramfs or rvm-vmm that it was made of is no longer \
installed. The next start that makes a template removes it.";

pub const TEMPLATE_CREATE: &str = "\
Make a template, unless there is one

It is for containers of this size without disks. Where a start could not make it before, this tries \
again.";

pub const TEMPLATE_EXAMPLE: &str = "\
EXAMPLE:
   To make the template of containers with a limit of 256 MiB and one CPU:

      # rvm template create --memory 256m --vcpus 1";

pub const EVENTS: &str = "\
Report what a container uses, and the processes killed for lack of memory

Each report is a line with a JSON object in runc's format: of type stats in every interval, and \
of type oom. The figures are the guest's. The command ends with the container.";

pub const LIST_EXAMPLE: &str = "\
EXAMPLE:
   To list the containers of Docker, whose state is not below /run/rvm:

      # rvm --root /run/docker/runtime-runc/moby list";

pub const SPEC: &str = "\
Write a configuration to begin with

The file config.json runs a shell at a terminal, with the root file system in rootfs beside it. \
The OCI runtime specification explains its fields.";

pub const SPEC_EXAMPLE: &str = "\
EXAMPLE:
   To run busybox:

      # mkdir -p hello/rootfs/bin && cd hello
      # cp /bin/busybox rootfs/bin/sh
      # rvm spec
      # rvm run hello";
