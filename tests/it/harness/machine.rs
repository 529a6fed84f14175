//! On which machine a test's pods run.

use std::cell::Cell;
use std::path::Path;

use kina::config::{Machine, Qemu};
use kina_testkit::vm::Prerequisites;

thread_local! {
    /// The handler of the test on this thread; a test's tasks all run on one.
    static HANDLER: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The runtime handler that the test asks for: that of its machine, else
/// `KINA_IT_HANDLER`, else `shared`.
pub(crate) fn handler() -> String {
    match HANDLER.get() {
        Some(handler) => handler.to_owned(),
        None => std::env::var("KINA_IT_HANDLER").unwrap_or_else(|_| "shared".to_owned()),
    }
}

/// Whether the test's pods run in virtual machines.
pub(crate) fn is_vm() -> bool {
    handler() == "vm"
}

/// Runs a test with its pods in virtual machines.
pub(crate) fn run_in_vm(test: fn()) {
    HANDLER.set(Some("vm"));
    test();
    HANDLER.set(None);
}

/// Declares tests of this module a second time, with their pods in virtual
/// machines: `vm::NAME` beside `NAME`.
macro_rules! also_in_vm {
    ($($test:ident),+ $(,)?) => {
        mod vm {
            $(
                #[test]
                fn $test() {
                    crate::harness::machine::run_in_vm(super::$test);
                }
            )+
        }
    };
}

pub(crate) use also_in_vm;

/// Has this test's pods run in virtual machines.
pub(crate) fn use_vm() {
    HANDLER.set(Some("vm"));
}

/// The `[machine]` of a daemon in that directory. Machines are emulated: that
/// works everywhere.
pub(super) fn configuration(directory: &Path) -> Machine {
    let qemu = if is_vm() {
        let found = Prerequisites::find().unwrap();
        Qemu {
            accelerator: kina_machine_qemu::Choice::Tcg,
            kernel: found.kernel,
            kernel_modules: found.modules,
            virtiofsd: found.virtiofsd,
            vsock: found.vsock_device,
            ..Qemu::default()
        }
    } else {
        Qemu { enabled: false, ..Qemu::default() }
    };
    Machine {
        kubelet_root: directory.join("kubelet"),
        share_roots: vec![directory.join("data"), directory.join("shared")],
        memory_mib: 256,
        qemu,
        ..Machine::default()
    }
}
