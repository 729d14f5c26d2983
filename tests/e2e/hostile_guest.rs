//! A hostile kernel (`tests/hostile-guest`) in the place of the guest's: it plays the agent until a
//! container runs, and then attacks. rvm and what it has started stay small, verbs answer, what the
//! user sees is short and clean, another machine works on, and nothing is left behind.
//!
//! The guest spends its time in user mode, which a host whose KVM emulates kernel mode executes at
//! full speed. So the tests of the `qemu` engine attack `rvm-vmm machine` as well, if there is a
//! /dev/kvm at all.
//!
//! With `--show-output` each test prints a row of the table for each engine: attack, engine,
//! rounds, the most memory, descriptors and threads of one process, the share of a CPU that the
//! monitor took, files below the container's root, the bytes of the console's log and of what the
//! user saw, the longest verb.

#[path = "hostile_guest/bounds.rs"]
mod bounds;

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bounds::Bounds;
use rvm_tests::network::Network;
use rvm_tests::{Bundle, Rvm, command, engine};
use serde_json::json;

/// How long the guest attacks before the container is killed.
const ATTACK: Duration = Duration::from_millis(700);

/// How long the guest may take for its first round, on a CPU that software emulates twice.
const FIRST_ROUND: Duration = Duration::from_secs(20);

/// How long a verb may take once the guest attacks. It has five seconds to end what is killed.
/// On a CPU that software emulates twice the rest can take as long again.
const MAX_TIME: Duration = Duration::from_secs(30);

/// How an attack ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// The container runs until it is killed.
    Killed,
    /// The same, but it may be the guest or its machine that ends first. QEMU and its back end
    /// answer what breaks the rules of a queue so.
    Either,
    /// The guest ends by itself.
    Dead,
}

/// Tests by name: the attack, and what it may come to on the `kvm` engine.
macro_rules! cases {
    ($($name:ident: $attack:literal $end:ident;)*) => {$(
        #[test]
        fn $name() {
            attacked($attack, End::$end);
        }
    )*};
}

cases! {
    a_kernel_that_does_nothing_is_a_guest_like_others: "nothing" Killed;

    // Queues and registers.
    queues_of_any_size_anywhere_are_refused: "bad-queues" Killed;
    descriptors_that_lead_anywhere_harm_nobody: "bad-chains" Killed;
    chains_without_an_end_end: "loops" Killed;
    indirect_tables_of_any_contents_harm_nobody: "indirect" Killed;
    requests_that_change_while_they_are_read_harm_nobody: "rewrites" Killed;
    what_a_second_processor_changes_meanwhile_harms_nobody: "second-processor" Killed;
    headers_that_a_second_processor_changes_harm_nobody: "second-processor-files" Either;
    devices_that_are_reset_at_work_start_again: "resets" Killed;
    a_storm_of_notifications_keeps_nobody_busy: "doorbells" Killed;
    any_access_to_any_register_is_answered: "registers" Killed;
    a_flood_of_the_configuration_space_is_answered: "config-space" Killed;

    // Devices.
    a_flood_of_the_console_fills_no_disk: "console" Killed;
    a_flood_of_the_serial_port_fills_no_disk: "serial" Killed;
    pages_of_the_balloon_may_be_any: "balloon" Killed;
    free_pages_that_are_not_free_cost_the_guest_alone: "reports" Killed;
    sectors_that_are_not_there_are_errors: "sectors" Killed;
    a_flood_for_random_numbers_is_answered: "random" Killed;
    packets_of_any_length_are_sent_or_dropped: "packets" Killed;

    // Streams.
    nobody_listens_to_the_guest: "connections" Killed;
    packets_of_no_stream_take_no_room: "half-open" Killed;
    packets_that_are_shorter_than_they_say_end_the_agent: "short-packets" Either;
    output_beyond_all_credit_is_cut_off: "output" Either;
    ends_of_other_containers_are_not_believed: "forged-ends" Killed;
    answers_that_nobody_waits_for_are_dropped: "answers" Killed;
    an_agent_that_speaks_no_ttrpc_is_told: "garbage" Either;
    lies_about_credit_end_the_stream: "credit" Either;
    a_guest_that_takes_no_packets_is_killed: "deaf" Either;
    a_guest_that_reads_nothing_is_killed: "never-reads" Killed;

    // Files.
    a_flood_of_names_takes_no_memory: "lookups" Killed;
    names_of_every_length_and_byte_stay_in_the_root: "names" Killed;
    messages_of_any_contents_are_refused: "messages" Either;
    files_that_are_never_closed_are_the_file_servers: "open-files" Killed;
    what_is_no_file_is_not_opened: "special-files" Killed;
    offsets_at_every_limit_are_errors: "offsets" Killed;
    waits_for_locks_take_few_threads: "locks" Killed;
    files_that_change_places_lead_nowhere: "renames" Killed;

    // The processor and what is not there.
    ports_are_there_or_not: "ports" Either;
    addresses_where_nothing_is_read_as_nothing: "holes" Killed;
    every_leaf_of_cpuid_is_answered: "cpuid" Killed;
    interrupts_for_everybody_reach_nobody_else: "interrupts" Killed;
    a_timer_without_a_pause_stops_its_guest_alone: "timer" Killed;
    a_triple_fault_is_an_end: "triple-fault" Dead;
    model_specific_registers_are_refused: "model-specific-registers" Killed;
    hypercalls_are_refused: "hypercalls" Killed;
    a_halted_processor_is_killed: "halt" Killed;
}

/// Attacks that need kernel mode as a processor has it.
const PRIVILEGED: [&str; 3] = ["model-specific-registers", "hypercalls", "halt"];

/// Attacks that leave no room for other output, and one that stops the guest on QEMU.
const MUTE: [&str; 3] = ["console", "serial", "timer"];

/// Attacks on devices that machines of the `kvm` engine alone have.
const OF_KVM: [&str; 2] = ["memory-plug", "sectors"];

/// What else the `kvm` engine's own tests run, in the nested machine: one attack of a kind, and
/// those of the tests that are no case.
const SLICE: [&str; 7] = [
    "nothing",
    "bad-chains",
    "second-processor",
    "doorbells",
    "console",
    "half-open",
    "lookups",
];

/// The engines that are attacked.
fn engines(attack: &str) -> Vec<String> {
    let mut engines = vec![engine()];
    let has_device = Path::new("/dev/kvm").exists();
    if engines[0] == "qemu" && has_device && !PRIVILEGED.contains(&attack) {
        engines.push("kvm".to_owned());
    }
    engines.retain(|engine| engine == "kvm" || !OF_KVM.contains(&attack));
    // The tests of the other engine have attacked the same rvm-vmm with the rest.
    let is_slice = engine() == "kvm" && !rvm_tests::long();
    if is_slice
        && ![OF_KVM.as_slice(), &PRIVILEGED, &SLICE]
            .concat()
            .contains(&attack)
    {
        engines.clear();
    }
    if engines.is_empty() {
        println!("skipped: {attack} is for another engine; RVM_TEST_LONG runs all on kvm");
    }
    engines
}

/// A world whose guests are hostile.
fn world(engine: &str, attack: &str) -> Rvm {
    let rvm = Rvm::new().on_engine(engine);
    let vcpus = if attack.starts_with("second") { 2 } else { 1 };
    let config = format!(
        "templates = \"off\"\nkernel = {:?}\nkernel_params = \"attack={attack}\"\n\
         vcpus = {vcpus}\nmax_vcpus = {vcpus}",
        env!("CARGO_BIN_EXE_rvm-hostile-guest")
    );
    rvm.configured(&config)
}

/// A container with a network card and a disk, for the guest to attack.
struct Prey {
    bundle: Bundle,
    _network: Network,
}

impl Prey {
    fn new() -> Self {
        let network = Network::new();
        network.ip("link add eth0 type veth peer name far");
        let bundle = Bundle::new(&["sleep", "1000"]);
        // Nobody mounts it.
        let image = bundle.path().join("disk.img");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let path = network.path();
        let bundle = bundle.mount(json!({
            "destination": "/disk", "type": "ext4", "source": image, "options": ["rw"],
        }));
        let bundle = bundle.with(|config| {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(path);
                }
            }
        });
        Self {
            bundle,
            _network: network,
        }
    }
}

fn attacked(attack: &str, end: End) {
    std::thread::scope(|scope| {
        for engine in engines(attack) {
            scope.spawn(move || live(attack, &engine, end, 0));
        }
    });
}

/// A million each: rounds that are powers of two, since the guest prints no others.
const MILLIONS: [(&str, u64, u64); 3] = [
    ("connections", 64, 1 << 14),
    ("half-open", 64, 1 << 14),
    ("lookups", 3, 1 << 19),
];

/// How long a million may take.
const LONG_ATTACK: Duration = Duration::from_secs(1200);

#[test]
fn a_million_of_each_takes_no_more_than_the_first() {
    if !rvm_tests::long() {
        return println!("skipped: RVM_TEST_LONG has a guest make a million of each request");
    }
    for (attack, each, rounds) in MILLIONS {
        assert!(each * rounds >= 1_000_000);
        for engine in engines(attack) {
            live(attack, &engine, End::Killed, rounds);
        }
    }
}

/// Leads a container through its life in a hostile guest, which makes at least so many rounds.
fn live(attack: &str, engine: &str, end: End, rounds: u64) {
    let rvm = world(engine, attack);
    let mut bounds = Bounds::new(&rvm);
    let prey = Prey::new();
    rvm.create(&prey.bundle, "box");
    rvm.ok(&["start", "box"]);
    bounds.begin(&prey.bundle);
    let is_mute = end == End::Dead || MUTE.contains(&attack);
    let begun = Instant::now();
    while !is_mute && !bounds.has_begun() && begun.elapsed() < FIRST_ROUND {
        bounds.look();
        if rvm.status("box") == "stopped" {
            break;
        }
    }
    let begun = Instant::now();
    while begun.elapsed() < ATTACK || bounds.count_rounds() < rounds {
        assert!(begun.elapsed() < LONG_ATTACK, "{attack} takes too long");
        bounds.look();
        std::thread::sleep(Duration::from_millis(50));
    }
    bounds.end(&prey.bundle);
    if end == End::Dead {
        bounds.time("end", || rvm.wait_for_status("box", "stopped"));
    }
    bounds.time("state", || rvm.ok(&["state", "box"]));
    let killed = bounds.time("kill", || rvm.call(&["kill", "box", "KILL"]));
    bounds.time("delete", || rvm.ok(&["delete", "--force", "box"]));
    let said_something = bounds.check(attack, engine, &killed.stderr);
    let is_dead = killed.stderr.contains("container not running");
    assert_eq!(killed.code, i32::from(is_dead), "{}", killed.stderr);
    // The first round can be the last of a machine.
    assert!(
        said_something || is_mute || is_dead,
        "nothing was attacked: {}",
        bounds.seen()
    );
    match end {
        End::Dead => assert!(is_dead, "{}", bounds.seen()),
        End::Killed if engine == "kvm" => assert!(!is_dead, "{}", bounds.seen()),
        End::Killed | End::Either => {}
    }
    rvm.assert_nothing_left();
}

/// Memory that the machine has grown by can be plugged and unplugged in no way but the host's.
#[test]
fn memory_that_is_plugged_without_being_granted_is_refused() {
    for engine in &engines("memory-plug") {
        let rvm = world(engine, "memory-plug");
        let mut bounds = Bounds::new(&rvm);
        let prey = Prey::new();
        rvm.create(&prey.bundle, "box");
        rvm.ok(&["start", "box"]);
        bounds.begin(&prey.bundle);
        // 200 MiB more than it has, which it never takes as it should.
        let mut update = rvm.command(&["update", "--memory", "750000000", "box"]);
        let update = update.stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !bounds.has_begun() && begun.elapsed() < FIRST_ROUND {
            bounds.look();
        }
        std::thread::sleep(ATTACK);
        bounds.end(&prey.bundle);
        let killed = bounds.time("kill", || rvm.call(&["kill", "box", "KILL"]));
        bounds.time("delete", || rvm.ok(&["delete", "--force", "box"]));
        let updated = bounds.time("update", || command::wait(update));
        let said = String::from_utf8_lossy(&updated.stderr).into_owned();
        let plugged = bounds.check("memory-plug", engine, &(said + &killed.stderr));
        assert!(plugged, "the machine has not grown");
        rvm.assert_nothing_left();
    }
}

/// A guest whose devices have failed cannot be saved, and is told so; any other goes on with its
/// attack where it was.
#[test]
fn a_guest_is_saved_and_restored_in_the_middle_of_its_attack_or_refused() {
    let attacks = [
        "lookups",
        "open-files",
        "half-open",
        "resets",
        "rewrites",
        "bad-queues",
    ];
    for attack in attacks {
        if !Path::new("/dev/kvm").exists() {
            return println!("skipped: only the engine kvm saves machines");
        }
        let rvm = world("kvm", attack);
        let mut bounds = Bounds::new(&rvm);
        let bundle = Bundle::new(&["sleep", "1000"]);
        rvm.create(&bundle, "box");
        rvm.ok(&["start", "box"]);
        std::thread::sleep(ATTACK);
        let image = rvm.path("image");
        let image = image.to_str().unwrap();
        let save = ["checkpoint", "--image-path", image, "box"];
        let saved = bounds.time("checkpoint", || rvm.call(&save));
        println!(
            "| {attack} | checkpoint {} | {} |",
            saved.code,
            saved.stderr.trim_end()
        );
        if saved.code == 0 {
            let mut restore = rvm.command(&["restore", "--detach", "--image-path", image]);
            restore.arg("--bundle").arg(bundle.write()).arg("box");
            // The monitor keeps them.
            let log = File::create(rvm.path("restore.log")).unwrap();
            restore.stdout(Stdio::null()).stderr(log);
            let restored = bounds.time("restore", || restore.status().unwrap());
            assert!(restored.success(), "{attack}: {restored}");
            std::thread::sleep(ATTACK);
        } else {
            let words = "rvm-vmm refuses to save the machine";
            assert!(saved.stderr.contains(words), "{}", saved.stderr);
        }
        bounds.time("kill", || rvm.ok(&["kill", "box", "KILL"]));
        bounds.time("delete", || rvm.ok(&["delete", "--force", "box"]));
        rvm.assert_nothing_left();
    }
}

/// Attacks that keep the host as busy as they can.
const FLOODS: [&str; 4] = ["doorbells", "console", "lookups", "half-open"];

/// How long a neighbour's work may take.
const NEIGHBOURS_TIME: Duration = Duration::from_secs(60);

#[test]
fn a_neighbour_works_on_while_others_flood_the_host() {
    let neighbour = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    neighbour.create(&bundle, "neighbour");
    neighbour.ok(&["start", "neighbour"]);
    let work = || {
        let script = "echo done > /work && cat /work && rm /work";
        let start = Instant::now();
        let output = neighbour.ok(&["exec", "neighbour", "sh", "-c", script]);
        assert_eq!(output, "done\n");
        start.elapsed()
    };
    let alone = work();
    let hostile = FLOODS.map(|attack| {
        let rvm = world(engines(attack).last().unwrap(), attack);
        let bundle = Bundle::new(&["sleep", "1000"]);
        rvm.create(&bundle, "box");
        rvm.ok(&["start", "box"]);
        (rvm, bundle)
    });
    let beside = [(); 3].map(|()| work()).into_iter().max().unwrap();
    for (rvm, _) in &hostile {
        rvm.ok(&["kill", "box", "KILL"]);
        rvm.ok(&["delete", "--force", "box"]);
    }
    println!("| neighbour of {FLOODS:?} | {beside:?}, alone {alone:?} |");
    // As any machine among others that are busy, on CPUs that software may emulate twice.
    assert!(beside <= NEIGHBOURS_TIME, "{beside:?}");
    neighbour.ok(&["kill", "neighbour", "KILL"]);
    neighbour.ok(&["delete", "--force", "neighbour"]);
}
