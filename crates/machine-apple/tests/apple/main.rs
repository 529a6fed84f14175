//! The driver with a stand-in for Apple's program, and each of Apple's traps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod boots;
mod machines;
mod place;
mod traps;

use kina_machine::conformance;
use kina_testkit::vm::Prerequisites;
use place::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms() {
    let place = Place::new().await;
    conformance::all(&place).await;
    assert_eq!(place.containers(), 0);
}

/// Real guests, in the simulator's machines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms_with_the_simulator() {
    let place = Place::simulated().await;
    conformance::all(&place).await;
    let left = place.simulate(&["list", "--all", "--quiet"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// The same, with kernels of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a dozen machines"]
async fn vm_the_driver_conforms_with_the_simulator() {
    let programs = Prerequisites::find().unwrap().simulator_programs().to_string();
    let place =
        Place::simulated_with(&[("CONTAINER_SIM_KIND", "microvm"), ("CONTAINER_SIM_PROGRAMS", &programs)])
            .await;
    conformance::all(&place).await;
    let left = place.simulate(&["list", "--all", "--quiet"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms_with_the_json_of_old_versions() {
    let place = Place::new().await;
    place.set("old-json", "");
    conformance::life_in_order(&place).await;
    conformance::wait_ends_with_the_machine(&place).await;
    conformance::another_instance_adopts(&place).await;
}
