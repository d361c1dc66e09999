//! How often it is looked who uses a card: once for both of its functions, where nobody can open them meanwhile.

use gpu_handoff::base::pci::PciAddr;
use gpu_handoff::model::act::Act;
use gpu_handoff::settings::values::{Gate, WayOut};

use crate::common::{End, Model, Session, addr, host};

/// What each look was for, from some act on.
fn looks(model: &Model, from: usize) -> Vec<Vec<PciAddr>> {
    let of = |act: &Act| match act {
        Act::ProveFree { addrs, .. } => Some(addrs.clone()),
        _ => None,
    };
    model.acts[from..].iter().filter_map(of).collect()
}

#[test]
fn behind_the_gate_one_look_serves_both_functions_and_without_it_each_has_its_own() {
    let (gpu, audio) = (addr(1, 0), addr(1, 1));
    // A release whose nvidia_drm is not in the way, so that nothing comes between the two.
    for (gate, cards, out, home) in [
        (Gate::Auto, 1, vec![vec![audio, gpu]], vec![vec![audio, gpu]]),
        (Gate::Off, 1, vec![vec![audio], vec![gpu]], vec![vec![audio], vec![gpu]]),
        // With one that stays, somebody may come by a node of the whole driver.
        (Gate::Auto, 2, vec![vec![audio], vec![gpu]], vec![vec![audio, gpu]]),
    ] {
        let mut model = host(cards);
        model.version = "590.48.01".to_owned();
        let mut session = Session::new(&[gpu]);
        session.settings.way = WayOut::Unbind;
        session.settings.gate = gate;
        assert!(matches!(session.out(&mut model), End::Done), "{gate:?}");
        assert_eq!(looks(&model, 0), out, "{gate:?}, {cards} cards");
        let away = model.acts.len();
        assert!(matches!(session.home(&mut model), End::Done), "{gate:?}");
        assert_eq!(looks(&model, away), home, "{gate:?}, {cards} cards, home");
        assert_eq!(model.laws.broken, [""; 0], "{gate:?}");
    }
}

/// What is unloaded between the two is in the way of a look before.
#[test]
fn where_a_module_goes_in_between_each_has_a_look_of_its_own() {
    let mut model = host(1);
    let mut session = Session::new(&[addr(1, 0)]);
    session.settings.way = WayOut::Unbind;
    assert!(matches!(session.out(&mut model), End::Done));
    assert_eq!(looks(&model, 0), [vec![addr(1, 1)], vec![addr(1, 0)]]);
}
