//! The driver with real machines.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

mod support;

mod vm {
    use std::time::{Duration, Instant};

    use kina_machine::conformance;
    use kina_machine::{Driver, MachineState};

    use super::support::{Place, kill};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_driver_conforms() {
        conformance::all(&Place::new().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_process_that_is_killed_is_named_and_leaves_nothing() {
        let place = Place::new().await;
        for (role, expected) in [
            ("qemu", "QEMU was killed by signal 9"),
            ("virtiofsd", "its process virtiofsd has ended, without which it cannot go on"),
            ("kina-vsock", "its process kina-vsock has ended, without which it cannot go on"),
        ] {
            let (pod, _guest) = place.started().await;
            kill(place.process(&pod, role).await);
            let begin = Instant::now();
            let ended = place.driver.wait(&pod).await.unwrap();
            assert_eq!(ended.reason, expected);
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
            assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
            place.driver.destroy(&pod).await.unwrap();
            assert_eq!(place.left(&pod).await, Vec::<String>::new(), "after {role}");
        }
    }
}
