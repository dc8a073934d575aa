//! A server's upgrade to another version, by `pg_upgrade`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use super::programs::{Account, PostgresPrograms};
use super::{Postgres, PostgresOptions, SUPERUSER, configure, initdb, start_process};
use crate::Error;

impl Postgres {
    /// Stops the server, upgrades its data by `pg_upgrade` to the version of the programs in
    /// `bin`, and starts it again, on the same port, with these settings. Roles and passwords
    /// stay. `bin` needs all programs of its version, those of clients too.
    pub fn upgrade(&mut self, bin: &Path, options: &PostgresOptions) -> Result<(), Error> {
        let programs = PostgresPrograms::in_folder(bin).ok_or_else(|| Error::Missing {
            what: format!("{} has no initdb and postgres", bin.display()),
            hint: "give the folder of PostgreSQL's server programs, pg_upgrade among them".into(),
        })?;
        let account = Account::for_server()?;
        self.stop();
        let home = self.data.parent().unwrap_or(Path::new("/")).to_owned();
        let data = home.join("upgraded");
        initdb(&programs, &account, &data)?;
        // It comes as the superuser, by a socket in the server's own folder.
        let rules = self.data.join("pg_hba.conf");
        fs::write(&rules, "local all postgres trust\n").map_err(Error::file("write", &rules))?;
        let arguments: [(&str, &OsStr); 6] = [
            ("--old-bindir", self.programs.folder().as_os_str()),
            ("--new-bindir", bin.as_os_str()),
            ("--old-datadir", self.data.as_os_str()),
            ("--new-datadir", data.as_os_str()),
            ("--username", SUPERUSER.as_ref()),
            ("--socketdir", home.as_os_str()),
        ];
        let arguments: Vec<OsString> = arguments
            .into_iter()
            .flat_map(|(name, value)| [OsString::from(name), value.to_owned()])
            .chain(["--no-sync".into()])
            .collect();
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        account.run_in(&home, &programs.program("pg_upgrade"), &arguments, "")?;

        configure(&home, &data, options)?;
        let log = self.log_path().to_owned();
        let (process, _) = start_process(&programs, &account, &data, &log, Some(self.port))?;
        (self.process, self.data, self.programs) = (process, data, programs);
        Ok(())
    }
}
