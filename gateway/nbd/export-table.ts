// Exports: the client's images by name, and the ones that are open, shared by all connections that use them.
//
//   (absent) ──acquire──> opening ──> open ──last release──> closing ──> (absent)
//                            └─ failed ─> (absent)   └─ lock lost: no new users ─┘
//
// One Image per export is what makes multi-conn honest: a flush on any connection covers the writes of all. Whoever asks
// while an image is being opened waits for that same opening; whoever asks while it is being closed waits for the end
// and opens it anew, so that the gateway never competes with itself for the image's lock.

import type { Image, ImageClient } from '../../cluster/client/image.ts';
import { StorageError } from '../../proto/errors.ts';
import { NBD_PAYLOAD_MAX } from '../../proto/limits.ts';
import type { ImageEntry } from '../../proto/map.ts';
import type { Log } from '../../proto/ports.ts';
import { type ExportTerms, TransmissionFlag } from '../nbd-protocol-ts/index.ts';
import { PREFERRED_BLOCK_BYTES } from './limits.ts';

const READ_FLAGS =
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_DF |
  TransmissionFlag.CAN_MULTI_CONN |
  TransmissionFlag.SEND_CACHE;
const WRITE_FLAGS = TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO;

export interface ExportUser {
  /** The export has another size now, or (lost) another writer: finish what is in flight and go. */
  exportChanged(lost: boolean): void;
}

/** An image that is open, or about to be. */
export class SharedExport {
  readonly name: string;
  readonly users = new Set<ExportUser>();
  /** Settles when the image is open or can't be. */
  readonly opening: Promise<void>;
  /** Resolves when the lock has been given back. */
  readonly gone: Promise<void>;
  resolveGone: () => void = () => {};
  /** New connections may join. */
  usable = true;
  #image: Image | null = null;

  constructor(name: string, opening: Promise<Image>) {
    this.name = name;
    this.gone = new Promise((resolve) => {
      this.resolveGone = resolve;
    });
    this.opening = opening.then((image) => {
      this.#image = image;
    });
  }
  get image(): Image | null {
    return this.#image;
  }
}

export interface ExportOptions {
  readonly readOnly: boolean;
  /** Fence another writer off instead of being refused. */
  readonly takeOver: boolean;
}

export class ExportTable {
  readonly #client: ImageClient;
  readonly #options: ExportOptions;
  readonly #log: Log;
  readonly #shared = new Map<string, SharedExport>();

  constructor(client: ImageClient, options: ExportOptions, log: Log) {
    this.#client = client;
    this.#options = options;
    this.#log = log;
  }

  /** All exports, for LIST. */
  list(): ExportTerms[] {
    return this.#ready().map((entry) => this.#terms(entry));
  }

  /** The export of that name; "" is the only one there is, if there is only one. */
  find(name: string): ExportTerms | null {
    const ready = this.#ready();
    const entry = name === '' ? (ready.length === 1 ? ready[0] : undefined) : ready.find((each) => each.name === name);
    return entry === undefined ? null : this.#terms(entry);
  }

  /**
   * Opens the export for `user`, or joins those who use it. Must be paired with release().
   * Rejects with StorageError NOT_FOUND, BUSY and what else the client says.
   */
  async acquire(name: string, user: ExportUser): Promise<SharedExport> {
    for (;;) {
      const terms = this.find(name);
      if (terms === null) throw new StorageError('NOT_FOUND', `no image named "${name}"`);
      const present = this.#shared.get(terms.name);
      if (present !== undefined && !present.usable) {
        await present.gone;
        continue;
      }
      const shared = present ?? this.#open(terms.name);
      shared.users.add(user);
      await shared.opening;
      return shared;
    }
  }

  /** What clients of an open export are told. */
  termsOf(shared: SharedExport): ExportTerms {
    const image = shared.image!;
    return this.#termsFor(image.name, image.sizeBytes, image.readOnly);
  }

  /** `user` has nothing in flight any more and will ask nothing more. The last one out closes the image. */
  release(shared: SharedExport, user: ExportUser): void {
    if (!shared.users.delete(user) || shared.users.size > 0) return;
    shared.usable = false;
    shared.image!.close((error) => {
      if (error !== null) this.#log.error('closing the image failed', { export: shared.name, code: error.code, error });
      this.#shared.delete(shared.name);
      shared.resolveGone();
    });
  }

  /** Resolves when every open image has been closed by its last user. */
  async drained(): Promise<void> {
    for (;;) {
      const [first] = this.#shared.values();
      if (first === undefined) return;
      await first.gone;
    }
  }

  #open(name: string): SharedExport {
    const shared = new SharedExport(name, this.#client.open(name, this.#options));
    this.#shared.set(name, shared);
    shared.opening.then(
      () => {
        shared.image!.onChange = (lost) => this.#onChange(shared, lost);
      },
      () => {
        shared.usable = false;
        this.#shared.delete(name);
        shared.resolveGone();
      },
    );
    return shared;
  }

  #onChange(shared: SharedExport, lost: boolean): void {
    if (lost) {
      shared.usable = false;
      this.#log.error('the image has another writer now: its clients are sent away', {
        export: shared.name,
        clients: shared.users.size,
      });
    } else {
      this.#log.info('the image has another size now', { export: shared.name, sizeBytes: shared.image!.sizeBytes });
    }
    for (const user of [...shared.users]) user.exportChanged(lost);
  }

  #ready(): ImageEntry[] {
    return this.#client.images().filter((entry) => entry.state === 'ready');
  }

  #terms(entry: ImageEntry): ExportTerms {
    const image = this.#shared.get(entry.name)?.image ?? null;
    if (image !== null) return this.#termsFor(image.name, image.sizeBytes, image.readOnly);
    return this.#termsFor(entry.name, entry.sizeBytes, this.#options.readOnly);
  }

  #termsFor(name: string, sizeBytes: number, readOnly: boolean): ExportTerms {
    return {
      name,
      description: '',
      sizeBytes,
      flags: READ_FLAGS | (readOnly ? TransmissionFlag.READ_ONLY : WRITE_FLAGS),
      minimumBlockBytes: 1,
      preferredBlockBytes: PREFERRED_BLOCK_BYTES,
      maximumPayloadBytes: NBD_PAYLOAD_MAX,
    };
  }
}
