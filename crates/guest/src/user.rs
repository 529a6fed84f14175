//! Who a container's process is, resolved in the image's own files as
//! Kubernetes and the images' USER define it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use kina_guest_api::v1;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::error::Error;

/// /etc/passwd and /etc/group may be that long, in bytes.
const ACCOUNT_FILE_LIMIT: u64 = 4 << 20;
/// What Linux allows a process (NGROUPS_MAX).
const GROUPS_LIMIT: usize = 65536;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub uid: u32,
    /// The primary group's number.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// The home directory; `/` for a user that the image does not know.
    pub home: String,
}

#[derive(Debug)]
struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct GroupEntry {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The accounts that an image defines.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Vec<PasswdEntry>,
    groups: Vec<GroupEntry>,
}

impl Accounts {
    /// Parses the two files; lines that make no sense are skipped, as libc does.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let users = passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, ..] = fields[..] else {
                return None;
            };
            Some(PasswdEntry {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.to_owned(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, ..] = fields[..] else {
                return None;
            };
            let members = fields.get(3).copied().unwrap_or_default();
            Some(GroupEntry {
                name: name.to_owned(),
                gid: gid.parse().ok()?,
                members: members.split(',').map(str::to_owned).collect(),
            })
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    /// Reads the files below a root directory, which is not trusted: its
    /// symbolic links do not lead out of it. A missing file counts as empty.
    ///
    /// # Errors
    ///
    /// When a file is there and cannot be read, or is too long.
    pub fn read(root: impl AsFd) -> Result<Self, Error> {
        let passwd = read_in_root(root.as_fd(), "etc/passwd")?;
        let group = read_in_root(root.as_fd(), "etc/group")?;
        Ok(Self::parse(&passwd, &group))
    }

    fn by_name(&self, name: &str) -> Result<&PasswdEntry, Error> {
        self.users
            .iter()
            .find(|user| user.name == name)
            .ok_or_else(|| Error::UnknownUser { user: name.to_owned() })
    }

    fn by_uid(&self, uid: u32) -> Option<&PasswdEntry> {
        self.users.iter().find(|user| user.uid == uid)
    }

    fn group_number(&self, group: &str) -> Result<u32, Error> {
        match number(group) {
            Some(gid) => Ok(gid),
            None => self
                .groups
                .iter()
                .find(|entry| entry.name == group)
                .map(|entry| entry.gid)
                .ok_or_else(|| Error::UnknownGroup { group: group.to_owned() }),
        }
    }

    /// Resolves a user. Without one it is root, with root's groups.
    ///
    /// A number needs no entry in /etc/passwd; then the group is 0. The primary
    /// group is the explicit one, else the one after the colon, else the
    /// user's. The user's groups of /etc/group are added unless `strict_groups`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownUser`] and [`Error::UnknownGroup`] for names that the
    /// image does not know; [`Error::Invalid`] for an empty name.
    pub fn resolve(&self, user: Option<&v1::User>) -> Result<Identity, Error> {
        let default = v1::User::default();
        let user = user.unwrap_or(&default);
        let (uid, entry, group) = match &user.who {
            None => (0, self.by_uid(0), None),
            Some(v1::user::Who::Uid(uid)) => (*uid, self.by_uid(*uid), None),
            Some(v1::user::Who::Name(text)) => {
                let (name, group) = match text.split_once(':') {
                    Some((name, group)) => (name, Some(group)),
                    None => (text.as_str(), None),
                };
                if name.is_empty() || group.is_some_and(str::is_empty) {
                    return Err(Error::invalid("process.user.name", format!("{text:?}")));
                }
                match number(name) {
                    Some(uid) => (uid, self.by_uid(uid), group),
                    None => {
                        let entry = self.by_name(name)?;
                        (entry.uid, Some(entry), group)
                    }
                }
            }
        };
        let gid = match (user.gid, group) {
            (Some(gid), _) => gid,
            (None, Some(group)) => self.group_number(group)?,
            (None, None) => entry.map_or(0, |entry| entry.gid),
        };
        let of_image = entry.filter(|_| !user.strict_groups).into_iter().flat_map(|entry| {
            self.groups.iter().filter(|group| group.members.contains(&entry.name)).map(|group| group.gid)
        });
        let mut groups = vec![gid];
        let mut seen = std::collections::HashSet::from([gid]);
        groups.extend(
            of_image.chain(user.supplemental_groups.iter().copied()).filter(|group| seen.insert(*group)),
        );
        if groups.len() > GROUPS_LIMIT {
            return Err(Error::TooMany { what: "groups", limit: GROUPS_LIMIT });
        }
        let home = entry.map(|entry| entry.home.as_str()).filter(|home| !home.is_empty());
        Ok(Identity { uid, gid, groups, home: home.unwrap_or("/").to_owned() })
    }
}

/// A number as USER means it: digits only.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn read_in_root(root: BorrowedFd<'_>, path: &'static str) -> Result<String, Error> {
    // Not blocking: a hostile image may have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(Error::file("open in the image", path, errno)),
    };
    let status = rustix::fs::fstat(&file).map_err(|e| Error::file("inspect", path, e))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Error::invalid("rootfs", format!("/{path} is no file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(ACCOUNT_FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::file("read in the image", path, source))?;
    if bytes.len() as u64 > ACCOUNT_FILE_LIMIT {
        return Err(Error::invalid("rootfs", format!("/{path} is too long")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::user::Who;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        web:x:33:34:web:/var/www:/bin/false\n\
        1000:x:77:77::/numeric:/bin/sh\n\
        big:x:99999999999:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,web\nwww:x:34:\nextra:x:50:web\nshort:x:51\n";

    fn user(who: Option<Who>) -> v1::User {
        v1::User { who, ..v1::User::default() }
    }

    fn name(text: &str) -> v1::User {
        user(Some(Who::Name(text.to_owned())))
    }

    #[test]
    fn users_resolve() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        let uid = |uid| user(Some(Who::Uid(uid)));
        type Expected<'a> = (u32, u32, &'a [u32], &'a str);
        let table: &[(v1::User, Expected<'_>)] = &[
            (user(None), (0, 0, &[0, 10], "/root")),
            (uid(0), (0, 0, &[0, 10], "/root")),
            (uid(33), (33, 34, &[34, 10, 50], "/var/www")),
            (uid(1000), (1000, 0, &[0], "/")),
            (name("web"), (33, 34, &[34, 10, 50], "/var/www")),
            (name("web:root"), (33, 0, &[0, 10, 50], "/var/www")),
            (name("web:7"), (33, 7, &[7, 10, 50], "/var/www")),
            (name("33:extra"), (33, 50, &[50, 10], "/var/www")),
            (name("1000"), (1000, 0, &[0], "/")),
            (name("1000:1000"), (1000, 1000, &[1000], "/")),
            (v1::User { gid: Some(9), ..name("web:www") }, (33, 9, &[9, 10, 50], "/var/www")),
            (
                v1::User { supplemental_groups: vec![50, 60, 60], ..uid(33) },
                (33, 34, &[34, 10, 50, 60], "/var/www"),
            ),
            (
                v1::User { supplemental_groups: vec![60], strict_groups: true, ..uid(33) },
                (33, 34, &[34, 60], "/var/www"),
            ),
        ];
        for (user, (uid, gid, groups, home)) in table {
            let identity = accounts.resolve(Some(user)).unwrap();
            let expected =
                Identity { uid: *uid, gid: *gid, groups: groups.to_vec(), home: (*home).to_owned() };
            assert_eq!(identity, expected, "{user:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        let refusal = |user: v1::User| accounts.resolve(Some(&user)).unwrap_err().to_string();
        assert!(refusal(name("ghost")).contains("ghost"));
        assert!(refusal(name("web:ghosts")).contains("ghosts"));
        assert!(refusal(name("99999999999")).contains("99999999999"));
        assert!(refusal(name("big")).contains("big"));
        for empty in ["", ":", "web:", ":www"] {
            assert!(matches!(accounts.resolve(Some(&name(empty))), Err(Error::Invalid { .. })));
        }
    }

    #[test]
    fn accounts_are_read_inside_the_root_only() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        // In the image this absolute link means its own /passwd, which is not there.
        std::os::unix::fs::symlink("/etc/shadow-of-the-host", etc.join("passwd")).unwrap();
        std::fs::write(etc.join("group"), GROUP).unwrap();
        let root = std::fs::File::open(directory.path()).unwrap();
        let accounts = Accounts::read(&root).unwrap();
        assert!(accounts.users.is_empty());
        assert_eq!(accounts.groups.len(), 5);

        std::fs::remove_file(etc.join("group")).unwrap();
        nix::unistd::mkfifo(&etc.join("group"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Accounts::read(&root).is_err());
    }
}
