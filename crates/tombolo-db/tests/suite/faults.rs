//! Each deliberate fault is caught by the case that is there for it.

use std::sync::Arc;

use tombolo_db::conformance::{self, Abilities, Fixture, Outcome};
use tombolo_db::mutant::Mutant;

/// Each fault, where it can be made, and the case that catches it.
const FAULTS: &[(Mutant, &str)] = &[
    (Mutant::NaiveOutboxCursor, "a_late_commit_is_not_skipped"),
    (Mutant::NoKeyLock, "a_key_is_locked_until_the_commit"),
    (Mutant::NumberingNotDurable, "a_late_commit_changes_no_number"),
    (Mutant::NoFencing, "a_replaced_leader_is_fenced_and_changes_nothing"),
    (Mutant::NoFencing, "a_worker_that_lost_its_lease_is_fenced"),
    (Mutant::NoFencing, "a_replaced_leader_moves_nothing"),
    (Mutant::NoFencing, "a_replaced_leader_divides_nothing"),
    (Mutant::NumbersWhereHinted, "what_commits_after_a_division_goes_to_the_new_generation"),
    (Mutant::EntersEarly, "places_are_reached_when_the_cursors_are_there_and_stay"),
    (Mutant::LaterRemovedApart, "a_crash_at_a_move_neither_loses_nor_doubles"),
    (Mutant::RenewsAnyLife, "a_later_life_takes_over_at_once_and_an_earlier_one_never"),
    (Mutant::ClaimsHeld, "members_share_and_nobody_takes_what_another_holds"),
    (Mutant::NoCursorCheck, "a_cursor_that_moved_rolls_the_effect_back"),
    (Mutant::ParkWithoutFollowers, "the_head_of_each_key_is_its_first_event"),
    (Mutant::RedriveWithoutLease, "a_worker_that_lost_its_lease_takes_nothing_out"),
    (Mutant::NoFencing, "a_completion_under_an_older_lease_is_refused"),
    (Mutant::NoCursorCheck, "a_completion_beside_a_moved_cursor_is_refused"),
    (Mutant::CompletionApart, "an_undone_transaction_completes_nothing"),
    (Mutant::SwitchUncompared, "a_switch_waits_for_the_cursors_of_the_live_build"),
    (Mutant::NaiveOutboxCursor, "a_foreign_row_that_commits_late_is_not_skipped"),
    (Mutant::NoKeyLock, "a_foreign_key_is_locked_until_the_commit"),
    (Mutant::NoFencing, "a_replaced_leader_takes_no_foreign_row_in"),
    (Mutant::ForeignRemovedApart, "a_crash_while_foreign_rows_are_taken_in_neither_loses_nor_doubles"),
    (Mutant::ForeignSteppedOver, "what_no_bus_takes_is_parked_with_its_key_and_takes_no_number"),
    (Mutant::ForeignAppliesTwice, "an_event_is_applied_once_by_another_program"),
    (Mutant::NoMemoryOfTheBus, "a_foreign_row_that_is_on_the_bus_is_dropped"),
    (Mutant::NoHalt, "nobody_leads_from_a_halted_database"),
    (Mutant::NoMemoryOfTheBus, "a_consequence_on_the_bus_is_not_published_again"),
];

async fn assert_caught<F: Fixture>(fixture: Arc<F>, abilities: Abilities, fault: Mutant, case: &str) {
    let name = format!("broken: {fault:?}");
    let report = conformance::report(&name, abilities, fixture, &|name| name == case).await;
    assert_eq!(report.len(), 1, "there is one case called {case}");
    assert!(matches!(report[0].1, Outcome::Failed(_)), "{fault:?} is not caught by {case}");
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_catches_every_fault_of_sqlite() {
    use crate::sqlite::{ABILITIES, Files};
    // About commits at once, which SQLite does not have, and about what is one statement there.
    let elsewhere = [
        Mutant::NaiveOutboxCursor,
        Mutant::NoKeyLock,
        Mutant::NumberingNotDurable,
        Mutant::NumbersWhereHinted,
        Mutant::CompletionApart,
    ];
    for &(fault, case) in FAULTS.iter().filter(|(fault, _)| !elsewhere.contains(fault)) {
        let mut files = Files::new();
        files.fault = Some(fault);
        assert_caught(Arc::new(files), ABILITIES, fault, case).await;
    }
}

#[cfg(feature = "documents")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_catches_every_fault_of_documents() {
    use crate::documents::{ABILITIES, Files};
    // About commits at once, which the store does not have, and about what is one transaction there.
    let elsewhere = [
        Mutant::NaiveOutboxCursor,
        Mutant::NoKeyLock,
        Mutant::NumberingNotDurable,
        Mutant::NumbersWhereHinted,
        Mutant::CompletionApart,
        Mutant::ForeignRemovedApart,
        Mutant::ForeignSteppedOver,
        Mutant::ForeignAppliesTwice,
    ];
    let is_there =
        |(fault, case): &&(Mutant, &str)| !elsewhere.contains(fault) && !case.contains("foreign_row");
    for &(fault, case) in FAULTS.iter().filter(is_there) {
        let mut files = Files::new();
        files.fault = Some(fault);
        assert_caught(Arc::new(files), ABILITIES, fault, case).await;
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_catches_every_fault_of_postgres() {
    use crate::postgres::{ABILITIES, Server};
    for &(fault, case) in FAULTS {
        let Some(mut server) = Server::start("fault").await else { return };
        server.fault = Some(fault);
        let server = Arc::new(server);
        assert_caught(server.clone(), ABILITIES, fault, case).await;
        server.remove().await;
    }
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_catches_every_fault_of_mariadb() {
    use crate::mysql::{ABILITIES, Server};
    // What PostgreSQL does by itself, these servers have to be asked.
    let own = (Mutant::CommitUnverified, "a_failed_statement_leaves_state_and_event_together");
    for &(fault, case) in FAULTS.iter().chain([&own]) {
        let Some(mut server) = Server::start("fault").await else { return };
        server.fault = Some(fault);
        let server = Arc::new(server);
        assert_caught(server.clone(), ABILITIES, fault, case).await;
        server.remove().await;
    }
}

#[cfg(feature = "mongodb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_catches_every_fault_of_mongodb() {
    use crate::mongodb::{ABILITIES, Server};
    // About rows of other programs, which it has none of.
    let elsewhere = [Mutant::ForeignRemovedApart, Mutant::ForeignSteppedOver, Mutant::ForeignAppliesTwice];
    let is_there = |(fault, case): &&(Mutant, &str)| !elsewhere.contains(fault) && !case.contains("foreign_");
    for &(fault, case) in FAULTS.iter().filter(is_there) {
        let Some(mut server) = Server::start("fault").await else { return };
        server.fault = Some(fault);
        let server = Arc::new(server);
        assert_caught(server.clone(), ABILITIES, fault, case).await;
        server.remove().await;
    }
}
