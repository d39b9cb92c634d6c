// Who writes the image: one client process after the other, each taking it over from the last.
//
// The model learns of a new session at the moment its lock is granted, and not before: until then the old writer's
// requests may still succeed, afterwards none that it begins may.

import type { ClusterSim } from './cluster-sim.ts';
import type { ImageModel } from './image-model.ts';
import type { Incarnation, Machine } from './scheduler.ts';
import { READER, Session, type Workload } from './workload.ts';

/** How long a writer that lost the image goes on trying before its process ends. */
const FENCED_LIFE_MS = 3_000;

export class Writers {
  readonly model: ImageModel;
  readonly #cluster: ClusterSim;
  readonly #workload: Workload;
  #count = 0;
  /** A process that has no image yet. */
  #opening: Machine | null = null;
  current: Session | null = null;
  reader: Session | null = null;

  constructor(cluster: ClusterSim, workload: Workload) {
    this.#cluster = cluster;
    this.#workload = workload;
    this.model = workload.model;
  }

  start(): void {
    this.#open();
    if (!this.#cluster.plan.observer) return;
    this.#cluster.openImage(this.#cluster.machine('reader'), true, (life, image) => {
      this.reader = new Session(this.#workload, life, image, READER);
      this.reader.start();
    });
  }

  /** The writer's process dies, or that of the one about to take over; another comes after a while. */
  crash(restartAfterMs: number): boolean {
    const machine = this.#opening ?? this.current?.life.machine ?? null;
    if (machine === null || !machine.up) return false;
    machine.end('crash');
    if (this.#opening === null) this.current = null;
    this.#opening = null;
    this.#cluster.scheduler.after(restartAfterMs, 'restart writer', () => {
      if (this.#opening === null) this.#open();
    });
    return true;
  }

  /** A second writer takes the image while the first still writes. */
  takeOver(): boolean {
    if (this.current === null || this.#opening !== null) return false;
    this.#open();
    return true;
  }

  #open(): void {
    const machine = this.#cluster.machine(`writer${++this.#count}`);
    this.#opening = machine;
    this.#cluster.openImage(machine, false, (life, image) => this.#opened(life, image));
  }

  #opened(life: Incarnation, image: Session['image']): void {
    const old = this.current;
    const number = this.model.session === 0 ? this.model.firstSession() : this.model.newSession();
    this.#opening = null;
    this.current = new Session(this.#workload, life, image, number);
    this.#cluster.scheduler.note(life.name, 'holds the image, session', number);
    this.current.start();
    if (old === null) return;
    this.#cluster.scheduler.after(FENCED_LIFE_MS, 'end of a fenced writer', () => {
      if (old.life.alive) old.life.machine.end('crash');
    });
  }
}
