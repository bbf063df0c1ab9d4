//! A small part of each fault, with a fixed seed; `cargo xtask faults` does them in earnest. Invariant: a mutant is caught by
//! a broken promise, not by a run that went wrong, which fails the test as well.

use std::process::Command;

/// Runs a part; it must end well, and something must have landed unless it says why nothing can.
fn run(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_tombolo-faults")).args(arguments).output();
    let output = output.expect("the fault run was built with this test");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{said}{error}");
    for skipped in said.lines().filter(|line| line.starts_with("skipped:")) {
        println!("{skipped}");
    }
    let has_landed = !said.contains("\n0 passed");
    assert!(has_landed || said.contains("skipped:"), "nothing landed:\n{said}");
}

#[test]
#[ignore = "slow: a world for each barrier of the path"]
fn a_process_killed_at_any_barrier_loses_and_doubles_nothing() {
    run(&["--only", "kill at", "--each", "1"]);
}

#[test]
fn a_process_killed_at_a_random_moment_loses_and_doubles_nothing() {
    run(&["--only", "kill at random", "--each", "10"]);
}

#[test]
fn a_leader_stopped_past_its_lease_finds_itself_replaced() {
    run(&["--only", "pause at `relay.before-append", "--each", "1"]);
}

#[test]
fn a_worker_stopped_past_its_lease_cannot_commit() {
    run(&["--only", "pause at `subscription.after-read", "--each", "1"]);
}

#[test]
fn a_bus_that_is_stopped_and_goes_on_loses_nothing() {
    run(&["--only", "pause at `log.after-write", "--each", "1"]);
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    run(&["--power", "5"]);
}

#[test]
fn a_full_disk_of_the_bus_is_named_and_everything_goes_on_when_there_is_room() {
    run(&["--only", "full disk of the bus", "--each", "1"]);
}

#[test]
fn a_full_disk_of_a_database_acknowledges_nothing_and_everything_goes_on_when_there_is_room() {
    run(&["--only", "full disk of a database", "--each", "2"]);
}

#[test]
#[ignore = "slow: 20,000 rows gather while the bus is away"]
fn what_gathers_while_the_bus_is_away_drains_when_it_is_back() {
    run(&["--only", "bus away", "--gathered", "20000"]);
}

#[test]
#[ignore = "slow: the database is away for longer than a writer waits"]
fn a_consumer_whose_database_is_away_counts_no_attempt() {
    run(&["--only", "database away", "--each", "1"]);
}

#[test]
fn an_older_copy_of_a_database_is_named_and_an_operator_ends_it() {
    run(&["--only", "old copy of a database", "--each", "1"]);
}

#[test]
fn an_older_copy_of_the_bus_is_named_and_nothing_is_passed_over() {
    run(&["--only", "old copy of the bus", "--each", "1"]);
}

#[test]
fn a_second_copy_of_a_service_is_named_and_publishes_nothing() {
    run(&["--only", "second copy of a service", "--each", "1"]);
}

#[test]
fn an_event_that_kills_the_process_each_time_is_parked_and_the_others_flow_on() {
    run(&["--only", "an event that kills", "--each", "1"]);
}

#[test]
fn what_is_brought_back_under_load_and_kills_keeps_its_order() {
    run(&["--only", "redrive under load", "--each", "5"]);
}

#[test]
fn a_topic_that_is_divided_under_load_and_kills_keeps_the_order_of_each_key() {
    run(&["--only", "divide under load", "--each", "5"]);
}

#[test]
#[ignore = "slow: a view of 20,000 events is built beside the one that is read"]
fn a_view_that_is_built_anew_under_load_and_kills_is_the_fold_of_its_topics() {
    run(&["--only", "rebuild under load", "--each", "1"]);
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::run;

    #[test]
    fn a_log_that_does_not_sync_is_caught_by_power_cuts() {
        run(&["--power", "20", "--mutant", "log-no-sync"]);
    }

    #[test]
    fn a_database_that_does_not_sync_is_caught_by_power_cuts() {
        run(&["--power", "20", "--mutant", "database-no-sync"]);
    }

    #[test]
    fn a_reader_that_enters_a_generation_early_is_caught_under_load_and_kills() {
        run(&["--only", "divide under load", "--each", "10", "--mutant", "database-enters-early"]);
    }

    #[test]
    fn a_cursor_that_moves_from_anywhere_is_caught_by_pauses() {
        run(&["--only", "pause at `subscription", "--each", "3", "--mutant", "database-no-cursor-check"]);
    }
}

/// On servers of other engines, which the run starts for itself where the tests have some too.
#[cfg(feature = "engines")]
mod on_other_engines {
    use tombolo_servers::Engine;

    use super::run;

    fn run_with(engines: &[&str], arguments: &[&str]) {
        for engine in engines {
            if std::env::var_os(format!("TOMBOLO_TEST_{engine}")).is_none() {
                return println!("skipped: TOMBOLO_TEST_{engine} is not set: `cargo xtask test` sets it");
            }
        }
        run(arguments);
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn whoever_is_killed_or_stopped_on_nats_nothing_is_lost_or_doubled() {
        run_with(&["NATS"], &["--bus", "nats", "--only", "random moments", "--each", "4"]);
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn whoever_is_killed_or_stopped_on_redis_nothing_is_lost_or_doubled() {
        run_with(&["REDIS"], &["--bus", "redis", "--only", "random moments", "--each", "4"]);
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn whoever_is_killed_or_stopped_on_postgres_as_the_bus_nothing_is_lost_or_doubled() {
        run_with(&["POSTGRES"], &["--bus", "postgres", "--only", "random moments", "--each", "4"]);
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn whoever_is_killed_or_stopped_from_postgres_over_nats_to_postgres_nothing_is_lost_or_doubled() {
        let chain = ["--bus", "nats", "--database", "postgres"];
        run_with(&["NATS", "POSTGRES"], &[&chain[..], &["--only", "random moments", "--each", "4"]].concat());
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn whoever_is_killed_or_stopped_from_mariadb_over_rabbitmq_to_sqlite_nothing_is_lost_or_doubled() {
        let chain = ["--bus", "rabbitmq", "--producer", "mariadb"];
        run_with(
            &["RABBITMQ", "MARIADB"],
            &[&chain[..], &["--only", "random moments", "--each", "3"]].concat(),
        );
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn a_mariadb_that_is_killed_or_stopped_under_load_loses_and_doubles_nothing() {
        run_with(&["MARIADB"], &["--database", "mariadb", "--only", "database server", "--each", "2"]);
    }

    #[test]
    #[ignore = "slow: starts servers of its own"]
    fn a_postgres_that_is_killed_or_stopped_under_load_loses_and_doubles_nothing() {
        run_with(&["POSTGRES"], &["--database", "postgres", "--only", "database server", "--each", "2"]);
    }
    #[test]
    #[ignore = "slow: starts a server of its own"]
    fn a_mongodb_that_is_killed_or_stopped_under_load_loses_and_doubles_nothing() {
        if !Engine::here().contains(&Engine::MongoDb) {
            return println!("skipped: mongodb: a server is not to be had here; put mongod on the PATH");
        }
        run(&["--database", "mongodb", "--only", "database server", "--each", "2"]);
    }
}
