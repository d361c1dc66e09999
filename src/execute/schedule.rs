//! Which acts of a plan are done at once. Pure.
//!
//! Not here: which order they have within a card ([`crate::plan`]), and doing them ([`crate::execute::acting`]).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::pci::PciAddr;
use crate::model::act::Act;
use crate::model::plan::Step;

/// How many acts of no card are done at once, each by a worker and a program of its own: a container chooses how many services it
/// has.
pub(crate) const MOST_AT_ONCE: usize = 16;

/// Which steps are done at once: each round has at most one step of a card, and those of no card have one of their own, but for
/// neighbours that go beside each other ([`Act::goes_beside`]).
///
/// The order within a card is kept, and nothing passes a step of no card. Proofs come right before what they prove: all
/// of a round first, then the acts.
pub fn rounds(steps: &[Step]) -> Vec<Vec<usize>> {
    let mut rounds = Vec::new();
    let mut lanes: BTreeMap<PciAddr, Vec<Vec<usize>>> = BTreeMap::new();
    let flush = |lanes: &mut BTreeMap<PciAddr, Vec<Vec<usize>>>, rounds: &mut Vec<Vec<usize>>| {
        let longest = lanes.values().map(Vec::len).max().unwrap_or(0);
        for n in 0..longest {
            let groups = lanes.values().filter_map(|lane| lane.get(n));
            let (proofs, acts): (Vec<usize>, Vec<usize>) = groups
                .flatten()
                .partition(|at| matches!(steps[**at].act, Act::ProveFree { .. }));
            rounds.extend([proofs, acts].into_iter().filter(|round| !round.is_empty()));
        }
        lanes.clear();
    };
    let mut proof_before = None;
    for (at, step) in steps.iter().enumerate() {
        match step.card {
            None => {
                flush(&mut lanes, &mut rounds);
                let is_neighbour = |before: usize| {
                    let one = &steps[before];
                    before + 1 == at && one.card.is_none() && one.act.goes_beside(&step.act)
                };
                let has_room = |round: &&mut Vec<usize>| round.len() < MOST_AT_ONCE;
                match rounds.last_mut().filter(has_room) {
                    Some(round) if round.last().copied().is_some_and(is_neighbour) => round.push(at),
                    _ => rounds.push(vec![at]),
                }
            }
            Some(card) => {
                let lane = lanes.entry(card).or_default();
                match lane.last_mut() {
                    Some(group) if proof_before == Some(card) => group.push(at),
                    _ => lane.push(vec![at]),
                }
            }
        }
        proof_before = step.card.filter(|_| matches!(step.act, Act::ProveFree { .. }));
    }
    flush(&mut lanes, &mut rounds);
    rounds
}

/// The proofs of a round as one, because one scan sees the users of all functions. None: it is a round of other acts.
pub(crate) fn one_proof(acts: &[(Act, Duration)]) -> Option<(Act, Duration)> {
    let addrs = |act: &Act| match act {
        Act::ProveFree { addrs, .. } => Some(addrs.clone()),
        _ => None,
    };
    // What the settings accept they accept for all.
    let (despite, despite_unseen) = match acts.first()? {
        (
            Act::ProveFree {
                despite,
                despite_unseen,
                ..
            },
            _,
        ) => (despite.clone(), *despite_unseen),
        _ => return None,
    };
    let all: Option<Vec<Vec<PciAddr>>> = acts.iter().map(|(act, _)| addrs(act)).collect();
    let addrs = all?.concat();
    let together = Act::ProveFree {
        addrs,
        despite,
        despite_unseen,
    };
    Some((together, acts.first()?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step for function 0 of a card on this bus; bus 0 stands for no card.
    fn step(bus: u8, proof: bool) -> Step {
        let addr: PciAddr = format!("0000:{bus:02x}:00.0").parse().unwrap();
        Step {
            act: if proof {
                Act::prove_free(vec![addr])
            } else {
                Act::Reset { addr }
            },
            deadline: Duration::from_secs(1),
            inverse: Vec::new(),
            rungs: Vec::new(),
            card: (bus > 0).then_some(addr),
            soft: false,
        }
    }

    /// A container is started, or stopped.
    fn unit(start: bool, ctid: &str) -> Step {
        let name = crate::host::units::Unit::Whole {
            container: ctid.parse().unwrap(),
        };
        let ends = Duration::from_secs(30);
        let act = if start {
            Act::start(&name, ends)
        } else {
            Act::stop(&name, ends)
        };
        Step { act, ..step(0, false) }
    }

    #[test]
    fn starts_in_containers_go_beside_each_other_but_for_what_starts_others_and_not_all_at_once() {
        let inside = |container: &str, unit: &str| Step {
            act: Act::StartUnit {
                name: crate::host::units::Unit::Inside {
                    container: container.parse().unwrap(),
                    unit: unit.to_owned(),
                },
                within_s: 0,
                has_ended: false,
            },
            ..step(0, false)
        };
        let steps = [
            inside("104", "a.socket"),
            inside("105", "b.socket"),
            inside("104", "a.service"),
            inside("104", "c.service"),
            inside("105", "b.service"),
            unit(true, "106"),
        ];
        assert_eq!(rounds(&steps), [vec![0, 1], vec![2, 3, 4], vec![5]]);
        let many: Vec<Step> = (0..20).map(|n| inside("104", &format!("{n}.service"))).collect();
        assert_eq!(
            rounds(&many).iter().map(Vec::len).collect::<Vec<_>>(),
            [MOST_AT_ONCE, 4]
        );
    }

    #[test]
    fn cards_go_side_by_side_and_each_in_its_order() {
        let (act, proof) = (|bus| step(bus, false), |bus| step(bus, true));
        for (steps, expected) in [
            (vec![act(0), act(0)], vec![vec![0], vec![1]]),
            (vec![act(1), act(1), act(2)], vec![vec![0, 2], vec![1]]),
            // Nothing passes a step of no card.
            (vec![act(1), act(0), act(2)], vec![vec![0], vec![1], vec![2]]),
            // Proofs of a round come right before its acts, also where another card has nothing to prove.
            (
                vec![proof(1), act(1), act(2), act(2), proof(2), act(2)],
                vec![vec![0], vec![1, 2], vec![3], vec![4], vec![5]],
            ),
            (vec![proof(1), act(1), proof(2), act(2)], vec![vec![0, 2], vec![1, 3]]),
            // Containers go beside each other, and nothing beside them; a stop is no start.
            (
                vec![
                    unit(true, "104"),
                    unit(true, "105"),
                    act(0),
                    unit(true, "106"),
                    unit(false, "104"),
                ],
                vec![vec![0, 1], vec![2], vec![3], vec![4]],
            ),
            (
                vec![unit(false, "104"), unit(false, "105"), act(1), unit(false, "106")],
                vec![vec![0, 1], vec![2], vec![3]],
            ),
            (vec![unit(true, "104"), unit(true, "104")], vec![vec![0], vec![1]]),
            (vec![], vec![]),
        ] {
            assert_eq!(rounds(&steps), expected);
        }
    }
}
