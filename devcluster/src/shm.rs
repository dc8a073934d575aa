//! The one thing that a killed PostgreSQL leaves outside its folder: a System V
//! shared memory segment of a few bytes, which guards its data folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Frees the segment of the server whose data was in `workdir`, if nobody uses it.
pub(crate) fn release(workdir: &Path) {
    let pid_file = workdir.join("postgres/data/postmaster.pid");
    let Some((key, id)) = fs::read_to_string(pid_file).ok().and_then(|text| segment(&text)) else {
        return;
    };
    let Ok(table) = fs::read_to_string("/proc/sysvipc/shm") else {
        return;
    };
    // Ids are used again: key and id must both fit, and nobody may be attached.
    let unused = table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&key.as_str()) && fields.get(1) == Some(&id.as_str()) && fields.get(6) == Some(&"0")
    });
    if unused {
        // Without ipcrm a few bytes stay until the next boot.
        let _ = Command::new("ipcrm").args(["-m", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Key and id of the segment, from the seventh line of a `postmaster.pid`. PostgreSQL
/// writes the key unsigned, `/proc` shows it signed.
fn segment(pid_file: &str) -> Option<(String, String)> {
    let mut fields = pid_file.lines().nth(6)?.split_whitespace();
    let key: u32 = fields.next()?.parse().ok()?;
    let id: u32 = fields.next()?.parse().ok()?;
    Some((key.cast_signed().to_string(), id.to_string()))
}
