/*
 * The protocol of a pair, as a model for spin: who may run the guest, what may leave it, and when.
 *
 * Two hosts hold one guest. Raft is modelled by its contract alone: a committed log that every host applies in
 * order, at its own pace; a proposal that was made may be committed at any later time, more than once, or never,
 * and nobody learns its outcome otherwise than by applying the log. The checkpoint stream delivers in order until
 * it is lost, which either end notices at any time, or falsely believes. Processes die at any step and come back
 * as another incarnation, with empty memory. There is no clock: whatever a timeout could do may happen any time.
 *
 * The guest is the number of the last epoch that it has run; each epoch has one output. A takeover from epoch k
 * undoes all that ran after k: that must not be seen by anybody.
 *
 * What is checked, as assertions:
 *   output commit   an output that has left is in the image from which the guest goes on     (in COMMITTED)
 *   one voice       whoever is not the primary says at most what the new primary's image holds (in LEAVES)
 *   entitled        a promotion finds the image that the assignment speaks of                   (in TAKE_OVER)
 *
 * docs/model/README.md says how it is run, with which bounds, and what it leaves out.
 */

#ifndef EPOCHS
#define EPOCHS 4   /* epochs that a guest may run */
#endif
#ifndef TERMS
#define TERMS 6    /* committed entries that raise the term */
#endif
#ifndef DEATHS
#define DEATHS 2   /* processes that die */
#endif
#ifndef LOSSES
#define LOSSES 2   /* streams that are lost, or believed to be */
#endif

/* Deliberate mistakes, one at a time: see README.md. */
#ifndef MISTAKE
#define MISTAKE 0
#endif
#define EARLY_RELEASE   1 /* output leaves before its epoch is acknowledged */
#define ASK_BEFORE_HOLD 2 /* Protect is asked while output still leaves at once */
#define ACK_AFTER_ASK   3 /* the replica acknowledges after it has asked for promotion */
#define OLD_TERM        4 /* Raft's state machine does not compare terms */
#define OLD_INCARNATION 5 /* hosts and Raft know a process by its host alone */
#define TIMEOUT_IS_NO   6 /* a primary that gets no answer opens the gate */
#define RUN_ON          7 /* a switchover that takes long is given up without asking */


#define NONE 2

/* Modes of the assignment. */
#define SOLO      0
#define PROTECTED 1

/* Commands. */
mtype = { Protect, Promote, GoSolo, Switchover, Cancel };

/* What a process is. */
#define IDLE    0
#define PRIMARY 1
#define REPLICA 2

/* The committed log: entry i is the assignment of term i. */
typedef assignment {
	bit  mode;
	bit  primary;
	byte replica;        /* NONE while solo */
	byte primaryInc;
	byte replicaInc;
	byte base;           /* the epoch from which the primary of this term went on */
};
assignment log[TERMS + 1];
byte last = 0;               /* the newest term */

byte out = 0;                /* the newest epoch whose output has left */

/* Processes, by host. */
byte inc[2];
byte role[2];
byte applied[2];             /* the newest term that the host has applied */
byte epoch[2];               /* primary: run; replica: acknowledged */
byte acked[2];               /* primary: the newest acknowledged */
bit  gate[2];                /* primary: output waits for the acknowledgement */
bit  stands[2];              /* primary: the vCPUs stand still for a switchover */
bit  filled[2];              /* replica: holds a whole image */
bit  asked[2];               /* replica: has asked for its promotion */
bit  proposed[2];            /* primary: has asked for Protect in this term */
bit  deciding[2];            /* primary: the stream is lost, the question stands */

/* The stream, of which there is one. */
bit  up = 0;
byte from = 0;
byte toInc = 0;
chan data = [2] of { byte };
chan acks = [2] of { byte };

/* Proposals under way: kind, host, incarnation, term, epoch, the other's incarnation. */
chan raft = [4] of { mtype, bit, byte, byte, byte, byte };

byte deaths = 0;
byte losses = 0;

#define PROPOSE(kind, h, e, other) \
	raft!!kind, h, inc[h], applied[h], e, other
#define MAY_PROPOSE(kind, h) \
	nfull(raft) && !raft??[kind, h, eval(inc[h]), eval(applied[h]), _, _]

/* An output of host h leaves, up to epoch e. */
#define LEAVES(h, e) \
	if \
	:: (log[last].primary == h && log[last].primaryInc == inc[h]) || (e) <= log[last].base \
	:: else -> assert(false) /* two voices */ \
	fi; \
	if :: (e) > out -> out = (e) :: else fi

inline lose() {
	up = 0;
	do :: data?_ :: acks?_ :: empty(data) && empty(acks) -> break od
}

inline reset(h) {
	role[h] = IDLE; epoch[h] = 0; acked[h] = 0; gate[h] = 0; stands[h] = 0;
	filled[h] = 0; asked[h] = 0; proposed[h] = 0; deciding[h] = 0
}

/* Raft commits a proposal: the state machine's rules (cluster/pact). */
inline commit(kind, h, i, t, e, other) {
	if
	:: last < TERMS && (t == last || MISTAKE == OLD_TERM) ->
		if
		:: kind == Protect && log[last].mode == SOLO && log[last].primary == h && (log[last].primaryInc == i || MISTAKE == OLD_INCARNATION) ->
			log[last + 1].mode = PROTECTED; log[last + 1].primary = h; log[last + 1].primaryInc = i;
			log[last + 1].replica = 1 - h; log[last + 1].replicaInc = other; log[last + 1].base = log[last].base;
			last++
		:: kind == Promote && log[last].mode == PROTECTED && log[last].replica == h && (log[last].replicaInc == i || MISTAKE == OLD_INCARNATION) ->
			assert(out <= e); /* output commit: what has left is in the image */
			log[last + 1].mode = SOLO; log[last + 1].primary = h; log[last + 1].primaryInc = i;
			log[last + 1].replica = NONE; log[last + 1].replicaInc = 0; log[last + 1].base = e;
			last++
		:: kind == GoSolo && log[last].primary == h && (log[last].primaryInc == i || MISTAKE == OLD_INCARNATION) ->
			log[last + 1].mode = SOLO; log[last + 1].primary = h; log[last + 1].primaryInc = i;
			log[last + 1].replica = NONE; log[last + 1].replicaInc = 0; log[last + 1].base = log[last].base;
			last++
		:: kind == Switchover && log[last].mode == PROTECTED && log[last].primary == h && log[last].primaryInc == i ->
			assert(out <= e);
			log[last + 1].mode = PROTECTED; log[last + 1].primary = 1 - h; log[last + 1].primaryInc = log[last].replicaInc;
			log[last + 1].replica = h; log[last + 1].replicaInc = i; log[last + 1].base = e;
			last++
		:: kind == Cancel && log[last].mode == PROTECTED && log[last].primary == h && log[last].primaryInc == i ->
			log[last + 1].mode = PROTECTED; log[last + 1].primary = h; log[last + 1].primaryInc = i;
			log[last + 1].replica = log[last].replica; log[last + 1].replicaInc = log[last].replicaInc; log[last + 1].base = log[last].base;
			last++
		:: else /* refused */
		fi
	:: else
	fi
}

/* A proposal is committed or refused at any time after it was made, in any order. One that names a term of the past
 * will be refused whenever that is, and is forgotten; where terms are not compared (OLD_TERM) it may come, and come again. */
#define TAKEN(kind, h) raft??[kind, h, i, t, e, other] -> raft??kind, h, i, t, e, other; commit(kind, h, i, t, e, other); forget()

inline forget() {
	n = len(raft);
	do
	:: n > 0 -> n--; raft?k, g, i, t, e, other; if :: t >= last || MISTAKE == OLD_TERM -> raft!!k, g, i, t, e, other :: else fi
	:: n == 0 -> break
	od;
	n = 0; k = 0; g = 0; i = 0; t = 0; e = 0; other = 0
}

active proctype Raft() {
	mtype k; bit g; byte i, t, e, other, n;
	do
	:: atomic { TAKEN(Protect, 0) }
	:: atomic { TAKEN(Protect, 1) }
	:: atomic { TAKEN(Promote, 0) }
	:: atomic { TAKEN(Promote, 1) }
	:: atomic { TAKEN(GoSolo, 0) }
	:: atomic { TAKEN(GoSolo, 1) }
	:: atomic { TAKEN(Switchover, 0) }
	:: atomic { TAKEN(Switchover, 1) }
	:: atomic { TAKEN(Cancel, 0) }
	:: atomic { TAKEN(Cancel, 1) }
	od
}

/* Host h applies the next entry of its log. */
inline apply(h) {
	applied[h]++;
	if
	:: log[applied[h]].primary == h && (log[applied[h]].primaryInc == inc[h] || MISTAKE == OLD_INCARNATION) ->
		if
		:: role[h] == PRIMARY -> skip
		:: role[h] == REPLICA ->
			/* It takes over, or takes the guest in a switchover: from the image that the entry speaks of. */
			assert(filled[h] && epoch[h] == log[applied[h]].base);
			role[h] = PRIMARY; acked[h] = epoch[h]; asked[h] = 0;
			if :: up && from != h -> lose() :: else fi
		:: role[h] == IDLE -> assert(false) /* a process without memory was given the guest */
		fi;
		proposed[h] = 0; deciding[h] = 0; stands[h] = 0;
		if
		:: log[applied[h]].mode == SOLO -> gate[h] = 0
		:: log[applied[h]].mode == PROTECTED -> gate[h] = 1
		fi
	:: else ->
		if
		:: role[h] == PRIMARY && log[applied[h]].mode == PROTECTED && log[applied[h]].replica == h && log[applied[h]].replicaInc == inc[h] ->
			/* A switchover: it holds the image of the final epoch, and is the replica. */
			role[h] = REPLICA; filled[h] = 1; epoch[h] = log[applied[h]].base; gate[h] = 0; stands[h] = 0;
			proposed[h] = 0; deciding[h] = 0; asked[h] = 0; acked[h] = 0;
			if :: up && from == h -> lose() :: else fi
		:: role[h] == PRIMARY && !(log[applied[h]].mode == PROTECTED && log[applied[h]].replica == h && log[applied[h]].replicaInc == inc[h]) ->
			/* The loser stops, and comes back as another. */
			inc[h]++; reset(h); if :: up && from == h -> lose() :: else fi
		:: role[h] == REPLICA && applied[h] > 0 && asked[h] && log[applied[h]].mode == SOLO ->
			/* Beaten: the primary goes on alone. Its image is of no use any more. */
			inc[h]++; reset(h); if :: up && from != h -> lose() :: else fi
		:: else
		fi
	fi
}

proctype Host(bit h) {
	byte n;
	do
	/* The log. */
	:: atomic { applied[h] < last -> apply(h) }

	/* The guest runs an epoch; its end is captured and sent. Solo, its output leaves at once. */
	:: atomic { role[h] == PRIMARY && !stands[h] && epoch[h] < EPOCHS && (!up || from != h || nfull(data)) ->
		epoch[h]++;
		if :: up && from == h -> data!epoch[h] :: else fi;
		if
		:: !gate[h] -> LEAVES(h, epoch[h])
		:: gate[h] && MISTAKE == EARLY_RELEASE -> LEAVES(h, epoch[h])
		:: else
		fi }

	/* An acknowledgement lets output go. */
	:: atomic { role[h] == PRIMARY && up && from == h && nempty(acks) ->
		acks?n; acked[h] = n;
		if :: gate[h] && !deciding[h] -> LEAVES(h, n) :: else fi; n = 0 }

	/* A twin is filled: the stream begins with the whole image. Nothing was promised to anybody. */
	:: atomic { role[h] == PRIMARY && log[applied[h]].mode == SOLO && !up && !proposed[h] && !deciding[h] && role[1 - h] == IDLE ->
		up = 1; from = h; toInc = inc[1 - h]; role[1 - h] = REPLICA; filled[1 - h] = 0; epoch[1 - h] = 0;
		acked[h] = 0;
		if :: epoch[h] > 0 -> data!epoch[h] :: else -> data!0 fi }

	/* Output is held from the end of an epoch on; Protect is asked when that one is acknowledged. */
	:: atomic { role[h] == PRIMARY && log[applied[h]].mode == SOLO && up && from == h && !gate[h] && !proposed[h] && MISTAKE != ASK_BEFORE_HOLD -> gate[h] = 1 }
	:: atomic { role[h] == PRIMARY && log[applied[h]].mode == SOLO && up && from == h && (gate[h] || MISTAKE == ASK_BEFORE_HOLD) && !proposed[h] && !deciding[h] &&
		filled[1 - h] && acked[h] == epoch[h] && empty(data) && MAY_PROPOSE(Protect, h) ->
		proposed[h] = 1; PROPOSE(Protect, h, epoch[h], toInc) }

	/* The stream is lost, or believed to be: whoever was promised something must be asked about. */
	:: atomic { role[h] == PRIMARY && up && from == h && losses < LOSSES -> losses++; lose();
		if
		:: proposed[h] || log[applied[h]].mode == PROTECTED -> deciding[h] = 1
		:: else -> gate[h] = 0 /* nobody can be entitled */
		fi }
	:: atomic { role[h] == PRIMARY && deciding[h] && MAY_PROPOSE(GoSolo, h) -> PROPOSE(GoSolo, h, 0, 0) }
	:: atomic { role[h] == PRIMARY && deciding[h] && MISTAKE == TIMEOUT_IS_NO -> gate[h] = 0; deciding[h] = 0 }
	:: atomic { role[h] == PRIMARY && !up && gate[h] && !deciding[h] && (proposed[h] || log[applied[h]].mode == PROTECTED) -> deciding[h] = 1 }

	/* A switchover: stand still, wait for the final epoch, ask. */
	:: atomic { role[h] == PRIMARY && log[applied[h]].mode == PROTECTED && up && from == h && !stands[h] -> stands[h] = 1 }
	:: atomic { role[h] == PRIMARY && stands[h] && acked[h] == epoch[h] && log[applied[h]].mode == PROTECTED && up && from == h && MAY_PROPOSE(Switchover, h) ->
		PROPOSE(Switchover, h, epoch[h], 0) }
	:: atomic { role[h] == PRIMARY && stands[h] && MAY_PROPOSE(Cancel, h) -> PROPOSE(Cancel, h, 0, 0) }
	:: atomic { role[h] == PRIMARY && stands[h] && MISTAKE == RUN_ON -> stands[h] = 0 }

	/* The new primary's stream to the one that it got the guest from: he holds the base already. */
	:: atomic { role[h] == PRIMARY && log[applied[h]].mode == PROTECTED && !up && !deciding[h] && role[1 - h] == REPLICA && filled[1 - h] &&
		inc[1 - h] == log[applied[h]].replicaInc && epoch[1 - h] == epoch[h] && !asked[1 - h] && applied[1 - h] == applied[h] ->
		up = 1; from = h; toInc = inc[1 - h]; acked[h] = epoch[h] }

	/* The replica takes an epoch and acknowledges it: never again once it has asked. */
	:: atomic { role[h] == REPLICA && up && from != h && toInc == inc[h] && nempty(data) && nfull(acks) && (!asked[h] || MISTAKE == ACK_AFTER_ASK) ->
		data?n; epoch[h] = n; filled[h] = 1; acks!n; n = 0 }

	/* It believes that the primary is gone: it asks, if it is entitled. */
	:: atomic { role[h] == REPLICA && filled[h] && !asked[h] && log[applied[h]].mode == PROTECTED && log[applied[h]].replica == h &&
		log[applied[h]].replicaInc == inc[h] && losses < LOSSES && MAY_PROPOSE(Promote, h) ->
		losses++; asked[h] = 1; PROPOSE(Promote, h, epoch[h], 0) }
	:: atomic { role[h] == REPLICA && asked[h] && log[applied[h]].mode == PROTECTED && log[applied[h]].replica == h && MAY_PROPOSE(Promote, h) -> PROPOSE(Promote, h, epoch[h], 0) }

	/* A replica that nobody fills any more forgets what it has, unless it may be entitled to it. */
	:: atomic { role[h] == REPLICA && !up && !asked[h] && applied[h] == last && !(log[last].mode == PROTECTED && log[last].replica == h && log[last].replicaInc == inc[h]) ->
		inc[h]++; reset(h) }

	/* The process dies. */
	:: atomic { deaths < DEATHS && role[h] != IDLE -> deaths++; inc[h]++; reset(h); if :: up -> lose() :: else fi }
	od
}

init {
	atomic {
		inc[0] = 1; inc[1] = 1;
		log[0].mode = SOLO; log[0].primary = 0; log[0].primaryInc = 1; log[0].replica = NONE; log[0].base = 0;
		role[0] = PRIMARY;
		run Host(0); run Host(1)
	}
}
