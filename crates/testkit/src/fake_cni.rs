//! A network plugin in memory: what [`FakeNode`](crate::fake_node::FakeNode)
//! answers when a program named [`PLUGIN`] is run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kina_node::{Output, Program};
use serde_json::{Value, json};

/// The type of the plugin, and the name of its executable.
pub const PLUGIN: &str = "fake";

/// What the plugin knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeNetwork {
    /// Addresses that are given out, by network and container: `network/container`.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Every call so far: its command and its container.
    pub calls: Vec<(String, String)>,
    /// How many of the next calls of a command fail. A failed ADD has given out
    /// an address, a failed DEL has not taken it back.
    pub failures: BTreeMap<&'static str, u32>,
    /// Commands that do what they should and then do not end.
    pub hangs: BTreeSet<&'static str>,
    /// The next address.
    pub next: u8,
}

impl FakeNetwork {
    /// Does what the plugin is asked to do; whether it hangs afterwards.
    pub fn run(&mut self, program: &Program) -> (Output, bool) {
        let variable = |name: &str| {
            let found = program.env.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let (command, container) = (variable("CNI_COMMAND"), variable("CNI_CONTAINERID"));
        let request: Value = serde_json::from_slice(&program.stdin).unwrap_or_default();
        if command == "VERSION" {
            let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]});
            return (answer(0, &versions), false);
        }
        self.calls.push((command.clone(), container.clone()));
        let fails = match self.failures.iter_mut().find(|(name, _)| **name == command) {
            Some((_, left)) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        };
        let hangs = self.hangs.contains(command.as_str());
        let network = request["name"].as_str().unwrap_or_default();
        let key = format!("{network}/{container}");
        let mut result = json!({});
        match command.as_str() {
            "ADD" => {
                self.next = self.next.wrapping_add(1);
                let address = Ipv4Addr::new(10, 99, 0, self.next);
                self.addresses.insert(key, address);
                result = json!({
                    "cniVersion": request["cniVersion"],
                    "interfaces": [{"name": variable("CNI_IFNAME"), "sandbox": variable("CNI_NETNS")}],
                    "ips": [{"address": "fd00::5/64", "interface": 0},
                            {"address": format!("{address}/24"), "interface": 0}],
                });
            }
            "DEL" if !fails => drop(self.addresses.remove(&key)),
            "GC" if !fails => {
                let valid = request["cni.dev/valid-attachments"].as_array().cloned().unwrap_or_default();
                self.addresses.retain(|key, _| match key.split_once('/') {
                    Some((of, id)) if of == network => {
                        valid.iter().any(|one| one["containerID"] == json!(id))
                    }
                    _ => true,
                });
            }
            _ => {}
        }
        if fails {
            let said = json!({
                "cniVersion": "1.1.0", "code": if command == "STATUS" { 50 } else { 100 },
                "msg": format!("no {command} today"),
            });
            return (answer(1, &said), hangs);
        }
        (answer(0, &result), hangs)
    }
}

fn answer(code: i32, said: &Value) -> Output {
    Output { code, stdout: said.to_string().into_bytes(), stderr: Vec::new() }
}
