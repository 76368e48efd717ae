//! The controllers against a real API server: what an object causes, what is put back, what is refused and how.
//!
//! Nothing runs pods here: where a kubelet or the Deployment controller would write a status, the test does.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "operator/bench.rs"]
mod bench;
#[path = "operator/calibration.rs"]
mod calibration;
#[path = "operator/card_faults.rs"]
mod card_faults;
#[path = "operator/cards.rs"]
mod cards;
#[path = "operator/certificate.rs"]
mod certificate;
#[path = "operator/claims.rs"]
mod claims;
#[path = "operator/credentials.rs"]
mod credentials;
#[path = "operator/engine_reports.rs"]
mod engine_reports;
#[path = "operator/gateways.rs"]
mod gateways;
#[path = "operator/hub.rs"]
mod hub;
#[path = "operator/inventory.rs"]
mod inventory;
#[path = "operator/late.rs"]
mod late;
#[path = "operator/lifecycle.rs"]
mod lifecycle;
#[path = "operator/memory.rs"]
mod memory;
#[path = "operator/orphans.rs"]
mod orphans;
#[path = "operator/pace.rs"]
mod pace;
#[path = "operator/perturb/mod.rs"]
mod perturb;
#[path = "operator/refused.rs"]
mod refused;
#[path = "operator/scenarios.rs"]
mod scenarios;
#[path = "operator/silence.rs"]
mod silence;
#[path = "operator/warm.rs"]
mod warm;
#[path = "operator/webhook.rs"]
mod webhook;
#[path = "operator/wrong_card.rs"]
mod wrong_card;

use anyhow::Result;
use bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_do_what_the_objects_say() -> Result<()> {
    let bench = Bench::start().await?;
    cards::default_profiles_are_created_once_and_never_overwritten(&bench).await?;
    cards::a_profile_without_nodes_says_what_was_looked_for(&bench).await?;
    scenarios::objects_appear_with_owners_and_drift_is_put_back(&bench).await?;
    scenarios::mistakes_are_told_where_people_look(&bench).await?;
    scenarios::a_name_that_is_taken_is_never_forced(&bench).await?;
    scenarios::engine_exits_become_conditions_and_readiness_becomes_ready(&bench).await?;
    scenarios::changed_tiers_roll_last_first_while_the_next_is_ready(&bench).await?;
    cards::two_models_and_one_card(&bench).await?;
    cards::two_profiles_of_one_node_are_told(&bench).await?;
    inventory::refused_nodes_are_told_with_what_to_do(&bench).await?;
    inventory::a_model_keeps_its_card_while_its_pod_is_replaced(&bench).await?;
    inventory::kubectl_scales_the_first_tier_and_suspend_stops_every_one(&bench).await?;
    memory::what_does_not_fit_is_not_started_and_says_what_would(&bench).await?;
    memory::what_the_advice_says_of_the_kv_cache_works(&bench).await?;
    memory::a_change_that_does_not_fit_leaves_what_serves(&bench).await?;
    memory::a_hand_edit_is_put_back_and_told_by_its_field(&bench).await?;
    memory::a_profile_that_is_deleted_in_use_takes_nothing_away(&bench).await?;
    credentials::a_private_models_secret_is_used_and_told_where_it_is_not_whole(&bench).await?;
    lifecycle::a_change_that_fails_is_taken_back_and_says_why(&bench).await?;
    lifecycle::what_an_edit_broke_on_one_tier_it_does_not_break_on_the_next(&bench).await?;
    lifecycle::a_cold_tier_starts_when_it_is_needed_and_goes_when_it_is_not(&bench).await?;
    warm::a_warm_tiers_weights_are_kept_on_its_nodes_without_a_card(&bench).await?;
    lifecycle::a_pod_on_a_lost_node_is_given_up_after_its_grace(&bench).await?;
    lifecycle::every_object_of_a_model_goes_with_it(&bench).await?;
    claims::cards_of_one_node_are_told_apart_by_claims(&bench).await?;
    orphans::no_child_outlives_what_it_was_made_for(&bench).await?;
    wrong_card::a_wrong_card_excludes_its_node_until_the_profile_is_mended(&bench).await?;
    wrong_card::on_a_node_with_two_kinds_the_pod_is_made_anew(&bench).await?;
    card_faults::a_card_that_fails_twice_is_left_alone_for_a_while(&bench).await?;
    card_faults::short_memory_marks_no_card_and_becomes_does_not_fit(&bench).await?;
    gateways::the_gateway_stays_while_a_model_lives(&bench).await?;
    gateways::a_name_that_the_gateway_needs_is_never_forced(&bench).await?;
    gateways::what_gateways_measure_becomes_status_and_events(&bench).await?;
    webhook::what_cannot_fit_is_refused_and_what_may_come_is_warned_of(&bench).await?;
    calibration::what_engines_measure_is_planned_with_and_rolls_nothing(&bench).await?;
    engine_reports::what_only_an_engine_reads_is_planned_with_its_word(&bench).await?;
    pace::objects_follow_soon_and_then_all_is_quiet(&bench).await?;
    scenarios::a_second_replica_takes_over_at_once(&bench).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubernetes_refuses_ends_or_leaves_behind_is_told() -> Result<()> {
    let bench = Bench::start().await?;
    for (name, units) in [("xtx", ("24G", "96")), ("xtx-2", ("24G", "96")), ("rx", ("8G", "32"))] {
        bench.card_node(name, units.0, units.1).await?;
    }
    refused::an_object_that_a_policy_refuses_is_told_and_asked_for_again(&bench).await?;
    refused::pods_that_are_refused_are_told_and_take_a_change_back(&bench).await?;
    refused::a_model_without_a_gateway_is_not_ready(&bench).await?;
    refused::what_a_node_ended_is_told_until_another_pod_serves(&bench).await?;
    refused::a_name_that_comes_again_takes_up_what_was_left(&bench).await?;
    refused::in_a_namespace_that_is_deleted_nothing_is_made_and_nobody_is_alarmed(&bench).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_the_cluster_comes_to_the_same_rest() -> Result<()> {
    perturb::everything().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_is_acted_on_when_it_comes() -> Result<()> {
    let bench = Bench::without_operator().await?;
    let flags = ["--read-secrets=false", "--gateway-tls-secret=web"];
    bench.replace_operator(Some(bench.spawn_operator_with("operator-a", &flags).await?));
    certificate::a_certificate_that_cannot_be_used_is_told_with_its_secret(&bench).await?;
    credentials::without_the_right_the_secret_is_the_engines_alone(&bench).await?;
    late::a_header_that_comes_late_needs_no_second_look(&bench).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_or_dead_gateway_is_deleted_and_a_starved_controller_deletes_none() -> Result<()> {
    silence::silent_and_starved().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_was_cut_off_deletes_no_living_gateway_afterwards() -> Result<()> {
    silence::cut_off().await
}
