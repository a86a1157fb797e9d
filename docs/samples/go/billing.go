// Writes one invoice for each request. For `keyward run -listen=…`: a new password is a new process on the same socket.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
)

const write = "INSERT INTO invoices DEFAULT VALUES RETURNING session_user || ' wrote invoice ' || id"

func main() {
	term, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	pool, noPool := pgxpool.New(context.Background(), "") // PGUSER, PGPASSWORD, PGHOST and so on: from the environment
	socket, noSocket := net.FileListener(os.NewFile(3, "the socket of keyward run"))
	notify, noNotify := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	check(noPool, noSocket, noNotify)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer string
		check(pool.QueryRow(r.Context(), write).Scan(&answer))
		fmt.Fprintln(w, answer)
	})}
	_, err := pool.Exec(context.Background(), "BEGIN; "+write+"; ROLLBACK") // a fresh login and what the service really does, undone
	check(err)
	notify.Write([]byte("READY=1")) // only a password that works is ready
	go server.Serve(socket)
	<-term.Done()
	server.Shutdown(context.Background()) // answer all before the end
	pool.Close()
}

func check(all ...error) {
	if err := errors.Join(all...); err != nil {
		log.Panic(err) // in a handler it ends this request alone
	}
}
