//! What a group uses of huge pages.

use crate::group::read;
use crate::{Error, Group};

/// Kernels know three sizes at most; more are not told of.
const SIZES_LIMIT: usize = 8;

/// What a group, with those below it, uses of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size as the kernel names it, as in `2MB`.
    pub page_size: String,
    /// Bytes used.
    pub bytes: u64,
    /// The most that were ever used; v1 only.
    pub peak_bytes: Option<u64>,
}

impl Group {
    /// Reads what is used of huge pages, by size, the kernel's smallest name first. Empty where the
    /// controller is missing.
    ///
    /// # Errors
    /// [`Error::Read`] if the group is gone.
    pub fn huge_pages(&self) -> Result<Vec<HugePages>, Error> {
        let (directory, suffix) = match self.v1_directory("hugetlb") {
            Some(directory) => (directory, ".usage_in_bytes"),
            None => match self.unified_directory() {
                Some(directory) => (directory, ".current"),
                None => return Ok(Vec::new()),
            },
        };
        let failed = |source| Error::Read { path: directory.clone(), source };
        let mut sizes = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let size = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(suffix));
            // What is reserved is counted by itself, as hugetlb.2MB.rsvd.current.
            sizes.extend(size.filter(|size| !size.contains('.')).map(str::to_owned));
        }
        sizes.sort();
        sizes.truncate(SIZES_LIMIT);
        let counted = sizes.into_iter().map(|page_size| {
            let number = |file: &str| -> Option<u64> {
                read(&directory.join(format!("hugetlb.{page_size}{file}"))).ok()?.trim().parse().ok()
            };
            let bytes = number(suffix)?;
            let peak_bytes = number(".max_usage_in_bytes");
            Some(HugePages { page_size, bytes, peak_bytes })
        });
        Ok(counted.flatten().collect())
    }
}
