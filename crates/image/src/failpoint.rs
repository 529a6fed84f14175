//! Failpoints: one before and one after every step by which the store changes
//! its files. `layout` and `files` are the only modules that change any, and
//! they perform each step through [`Failpoints::around`].

/// Called with `before` or `after` and the step's name. A test ends the process
/// in it, as if by `kill -9`.
pub type Failpoint = fn(when: &'static str, step: &'static str);

/// The steps, as [`Failpoint`] hears of them.
pub const STEPS: [&str; 8] = [
    Step::Create.name(),
    Step::Write.name(),
    Step::Sync.name(),
    Step::Rename.name(),
    Step::SyncDirectory.name(),
    Step::Retire.name(),
    Step::Free.name(),
    Step::Sweep.name(),
];

/// A change of the store's files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A temporary file comes into being.
    Create,
    /// Bytes go into it. The writer of layer images has its own way of writing.
    Write,
    /// They become durable.
    Sync,
    /// It gets its name.
    Rename,
    /// The name becomes durable.
    SyncDirectory,
    /// A file loses its name.
    Retire,
    /// And its space.
    Free,
    /// What a killed process left goes.
    Sweep,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Create => "image-file-create",
            Self::Write => "image-file-write",
            Self::Sync => "image-file-sync",
            Self::Rename => "image-file-rename",
            Self::SyncDirectory => "image-directory-sync",
            Self::Retire => "image-file-retire",
            Self::Free => "image-file-free",
            Self::Sweep => "image-file-sweep",
        }
    }
}

/// The configured failpoint; costs nothing without one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Failpoints(pub(crate) Option<Failpoint>);

impl Failpoints {
    /// Performs a step between its two failpoints.
    pub(crate) fn around<T>(self, step: Step, effect: impl FnOnce() -> T) -> T {
        let Some(failpoint) = self.0 else { return effect() };
        failpoint("before", step.name());
        let result = effect();
        failpoint("after", step.name());
        result
    }
}
