//! What may happen next in a state of the world.

use lifecycle::core::{Act, Generation, Presence, wanted};

use super::{How, Letter, Mode, Move, OLD, OLD_VALUE, Phase, Process, State, name};

impl State {
    pub(super) fn moves(&self, moves: &mut Vec<Move>) {
        if self.flaw.is_some() {
            return;
        }
        let may_fail = self.faults > 0;
        if self.late.is_some() {
            moves.push(Move::Arrive);
        }
        for (k, (_, act)) in self.owed.iter().enumerate() {
            moves.push(Move::Perform(k, How::Well));
            if may_fail {
                moves.push(Move::Perform(k, How::AnswerLost));
                match act {
                    Act::Set { .. } => moves.extend([Move::Perform(k, How::RequestLost), Move::Perform(k, How::Delayed)]),
                    Act::Kill { .. } => moves.extend([How::RequestLost, How::Half, How::Pretended].map(|how| Move::Perform(k, how))),
                    Act::Generate { .. } => moves.push(Move::Perform(k, How::RequestLost)),
                    Act::Publish { .. } => moves.push(Move::Perform(k, How::Denied)),
                    _ => {}
                }
            }
        }
        for letter in &self.mail {
            moves.push(Move::Deliver(letter.clone()));
            if may_fail {
                moves.push(Move::DeliverTwice(letter.clone()));
            }
        }
        if self.mode != Mode::Up {
            moves.push(Move::Turn(Mode::Up));
        }
        if self.stranger.is_some() {
            moves.push(Move::StrangerGoes);
        }
        if self.run.phase == Phase::Closed {
            return;
        }
        if self.run.wake.is_some() {
            moves.push(Move::Tick);
        }
        if self.run.parked.is_some() || self.run.consumers.values().any(|consumer| consumer.nack.is_some()) {
            moves.push(Move::Resume);
        }
        for (i, process) in self.processes.iter().enumerate() {
            self.moves_of(i, process, moves);
        }
        if may_fail {
            if self.mode == Mode::Up {
                moves.extend([Move::Turn(Mode::Down), Move::Turn(Mode::Deaf)]);
            }
            if self.echo.is_some() {
                moves.push(Move::Echo);
            }
            if !self.aborted {
                moves.push(Move::Abort);
            }
            if self.run.emergency.is_none() && self.run.old.is_some() {
                moves.push(Move::Emergency);
            }
            if self.stranger.is_none() && self.password(OLD) == Some(OLD_VALUE) {
                moves.push(Move::StrangerComes);
            }
        }
    }

    fn moves_of(&self, i: usize, process: &Process, moves: &mut Vec<Move>) {
        let may_fail = self.faults > 0;
        let instance = name(i);
        if !process.alive {
            if may_fail && !self.run.phase.is_rollback() {
                moves.push(Move::Join(i));
            }
            let lapsed = self.run.consumers.get(&instance).is_some_and(|c| c.presence == Presence::Lapsed && !c.token_dead);
            if lapsed {
                moves.push(Move::EndToken(i));
            }
            return;
        }
        // The limit of what the rules promise: a process that lost stream and token may be written off (it has no session on the slot
        // that is to die), and what it received and did not use before that is used no more.
        let cut_off = !process.linked && process.token_dead;
        if process.received.is_some() && !cut_off {
            moves.push(Move::Use(i));
            if may_fail {
                moves.push(Move::Refuse(i));
            }
        }
        let using_slot = process.using.map(|(_, value)| self.slot_of(value));
        if process.sessions.iter().any(|slot| Some(*slot) != using_slot) {
            moves.push(Move::CloseOld(i));
        }
        // Who has neither stream nor token nor session is written off by the rules: it does not come back without starting anew.
        let written_off = !process.linked && process.token_dead && process.sessions.is_empty();
        if process.using.is_some() && !written_off {
            moves.push(if process.sessions.is_empty() { Move::Work(i) } else { Move::Idle(i) });
        }
        if !process.linked {
            if !process.token_dead {
                moves.push(Move::Return(i));
                if may_fail {
                    moves.push(Move::EndToken(i));
                }
            } else {
                moves.push(Move::Return(i));
            }
            return;
        }
        let wanted = wanted(&self.run, &instance);
        let known = self.run.consumers.get(&instance);
        let refused_still = |generation: Generation| {
            process.refused == Some(generation) && known.is_none_or(|c| c.nack.as_ref().is_some_and(|nack| nack.generation == generation))
        };
        let fresh_use = wanted.using.is_some_and(|(generation, _)| {
            let has =
                process.using.is_some_and(|(using, _)| using == generation) || process.received.is_some_and(|(got, _)| got == generation);
            let acked =
                known.is_some_and(|c| c.acked.is_some_and(|(acked, level)| acked == generation && level >= self.run.terms.required));
            let told = self.mail.contains(&Letter::Ack(i, generation, true)) || self.mail.contains(&Letter::Nack(i, generation));
            !refused_still(generation) && (!has || (process.using.is_some_and(|(using, _)| using == generation) && !acked && !told))
        });
        let fresh_standby = wanted.standby.is_some_and(|(generation, value)| {
            let told = self.mail.contains(&Letter::Ack(i, generation, false));
            process.standby != Some((generation, value)) || (known.is_some_and(|c| c.standby.is_none()) && !told)
        });
        if known.is_some() && (fresh_use || fresh_standby) {
            moves.push(Move::Receive(i));
        }
        if may_fail {
            moves.extend([Move::Cut(i), Move::Die(i), Move::Leave(i)]);
        }
    }
}
