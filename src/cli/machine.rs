//! `kina machine`: the machines of pods, asked through the daemon's socket.

use clap::Subcommand;
use serde_json::Value;

use super::text::{bytes, short, table};
use super::{show, socket};
use crate::admin::v1;

/// Flags and what to do.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: socket::DaemonSocket,
    /// JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the machines of pods: what they are, and what they cost beside
    /// their containers.
    #[command(visible_alias = "list")]
    Ls,
    /// Print the last words of a pod's machine: its kernel's console, or its
    /// guest's log on the node's own kernel. They are kept until the pod is removed.
    Console {
        /// The pod's id, or the beginning of it.
        pod: String,
        /// So many bytes at most, counted from the end.
        #[arg(long, default_value_t = 64 << 10, value_name = "COUNT")]
        bytes: u64,
    },
    /// Tell all about a pod's machine.
    Inspect {
        /// The pod's id, or the beginning of it.
        pod: String,
    },
}

/// Runs one of the commands.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { daemon, json, command } = arguments;
    socket::block_on(async move {
        let mut admin = daemon.connect().await?.admin;
        match command {
            Command::Ls => {
                let request = v1::ListMachinesRequest { pod: String::new() };
                let machines = admin.list_machines(request).await?.into_inner().machines;
                let all: Vec<Value> = machines.iter().map(machine_json).collect();
                show(json, &Value::from(all), || list(&machines))?;
            }
            Command::Console { pod, bytes } => {
                let request = v1::MachineConsoleRequest { pod, limit_bytes: bytes };
                let answer = admin.machine_console(request).await?.into_inner();
                let text = String::from_utf8_lossy(&answer.console);
                let value = serde_json::json!({ "pod": answer.pod, "console": text });
                show(json, &value, || printable(&text).trim_end().to_owned())?;
            }
            Command::Inspect { pod } => {
                let machines =
                    admin.list_machines(v1::ListMachinesRequest { pod }).await?.into_inner().machines;
                for machine in &machines {
                    show(json, &machine_json(machine), || all(machine))?;
                }
            }
        }
        Ok(())
    })
}

fn machine_json(machine: &v1::Machine) -> Value {
    let process = |process: &v1::MachineProcess| {
        serde_json::json!({
            "role": process.role, "pid": process.pid,
            "memoryBytes": process.memory_bytes, "cpuNanos": process.cpu_nanos,
        })
    };
    let facts: serde_json::Map<String, Value> =
        machine.facts.iter().map(|fact| (fact.name.clone(), fact.value.clone().into())).collect();
    serde_json::json!({
        "pod": machine.pod, "namespace": machine.namespace, "name": machine.name,
        "driver": machine.driver, "state": machine.state,
        "memoryBytes": machine.memory_bytes, "cpus": machine.cpus,
        "bootId": machine.boot_id, "kernel": machine.kernel,
        "ended": machine.ended, "problem": machine.problem,
        "processes": machine.processes.iter().map(process).collect::<Vec<_>>(),
        "facts": facts,
    })
}

/// What it costs beside its containers, all parts together.
fn own_memory(machine: &v1::Machine) -> u64 {
    machine.processes.iter().map(|process| process.memory_bytes).sum()
}

fn fact<'a>(machine: &'a v1::Machine, name: &str) -> &'a str {
    machine.facts.iter().find(|fact| fact.name == name).map_or("-", |fact| fact.value.as_str())
}

/// Without a size a machine has the node's.
fn size(machine: &v1::Machine) -> (String, String) {
    match (machine.memory_bytes, machine.cpus) {
        (0, _) | (_, 0) => ("-".to_owned(), "-".to_owned()),
        (memory, cpus) => (bytes(memory), cpus.to_string()),
    }
}

fn list(machines: &[v1::Machine]) -> String {
    let heads = ["POD", "NAME", "DRIVER", "STATE", "MEMORY", "CPUS", "ACCEL", "KERNEL", "BOOT", "OWN MEMORY"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for machine in machines {
        let (memory, cpus) = size(machine);
        let known = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        rows.push(vec![
            short(&machine.pod).to_owned(),
            format!("{}/{}", machine.namespace, machine.name),
            machine.driver.clone(),
            machine.state.clone(),
            memory,
            cpus,
            fact(machine, "accelerator").to_owned(),
            known(&machine.kernel),
            known(machine.boot_id.get(..8).unwrap_or(&machine.boot_id)),
            bytes(own_memory(machine)),
        ]);
    }
    table(&rows)
}

fn all(machine: &v1::Machine) -> String {
    let (memory, cpus) = size(machine);
    let mut rows = vec![
        ("pod", machine.pod.clone()),
        ("name", format!("{}/{}", machine.namespace, machine.name)),
        ("driver", machine.driver.clone()),
        ("state", machine.state.clone()),
        ("memory", memory),
        ("cpus", cpus),
        ("kernel", machine.kernel.clone()),
        ("boot id", machine.boot_id.clone()),
        ("ended", machine.ended.clone()),
        ("problem", machine.problem.clone()),
    ];
    let told = |name: &str| ["kernel", "boot id"].contains(&name);
    let facts = machine.facts.iter().filter(|fact| !told(&fact.name));
    rows.extend(facts.map(|fact| (fact.name.as_str(), fact.value.clone())));
    rows.retain(|(_, value)| !value.is_empty());
    let lines: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), printable(&value)]).collect();
    let mut text = table(&lines);
    if !machine.processes.is_empty() {
        let mut rows = vec![["PROCESS", "PID", "MEMORY", "CPU"].map(str::to_owned).to_vec()];
        for process in &machine.processes {
            let seconds = process.cpu_nanos / 1_000_000_000;
            let millis = process.cpu_nanos / 1_000_000 % 1000;
            rows.push(vec![
                process.role.clone(),
                process.pid.to_string(),
                bytes(process.memory_bytes),
                format!("{seconds}.{millis:03} s"),
            ]);
        }
        text.push_str("\n\n");
        text.push_str(&table(&rows));
    }
    text
}

/// Without what a stranger's console could do to this terminal.
fn printable(text: &str) -> String {
    let kept = |char: &char| !char.is_control() || matches!(char, '\n' | '\t');
    text.chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see() {
        let machine = v1::Machine {
            pod: "0123456789abcdef".into(),
            namespace: "default".into(),
            name: "web".into(),
            driver: "qemu".into(),
            state: "running".into(),
            memory_bytes: 300 << 20,
            cpus: 2,
            boot_id: "aaaabbbb-cccc".into(),
            kernel: "6.1.0".into(),
            processes: vec![
                v1::MachineProcess {
                    role: "qemu".into(),
                    pid: 7,
                    memory_bytes: 40 << 20,
                    cpu_nanos: 1_500_000_000,
                },
                v1::MachineProcess { role: "virtiofsd".into(), pid: 8, memory_bytes: 2 << 20, cpu_nanos: 0 },
            ],
            facts: vec![v1::MachineFact { name: "accelerator".into(), value: "kvm".into() }],
            ..Default::default()
        };
        let text = list(std::slice::from_ref(&machine));
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split("   ").map(str::trim).collect();
        let cells: Vec<&str> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            [
                "0123456789ab",
                "default/web",
                "qemu",
                "running",
                "300.0 MiB",
                "2",
                "kvm",
                "6.1.0",
                "aaaabbbb",
                "42.0 MiB"
            ]
        );
        let text = all(&machine);
        assert!(text.contains("accelerator   kvm") && text.contains("1.500 s"), "{text}");
        assert!(!text.contains("ended"), "{text}");
        let host = v1::Machine { memory_bytes: 0, cpus: 0, ..machine };
        let text = list(&[host]);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells[3..7], ["running", "-", "-", "kvm"]);
        assert_eq!(printable("a\u{1b}[2Jb\r\n\tc"), "a[2Jb\n\tc");
    }
}
